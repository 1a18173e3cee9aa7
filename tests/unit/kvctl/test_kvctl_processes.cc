// Channels and child processes: a peer that ends is seen, never waited for.
#include <unistd.h>

#include "client/kvctl/process/channel.h"
#include "client/kvctl/process/child_process.h"
#include "client/kvctl/replay/replay.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;
using namespace std::chrono_literals;

Channel::Deadline In(std::chrono::milliseconds time) { return std::chrono::steady_clock::now() + time; }

Request WithIds(std::vector<std::uint64_t> ids) {
  Request request;
  request.hash_ids = std::move(ids);
  return request;
}

}  // namespace

TEST_CASE("Channel: messages keep their boundaries, also the largest", "[unit]") {
  auto ends = Channel::Pair();
  REQUIRE(ends.has_value());
  auto& [a, b] = *ends;
  const std::vector<std::byte> large(Channel::kMaxMessageBytes, std::byte{7});
  CHECK_FALSE(b.Readable());
  REQUIRE(a.SendStruct(std::uint32_t{5}).has_value());
  CHECK(b.Readable());
  CHECK(*b.ReceiveStruct<std::uint32_t>(In(1s)) == 5);
  REQUIRE(a.Send(large).has_value());
  CHECK(*b.Receive(In(1s)) == large);
  CHECK(a.Send(std::vector<std::byte>(large.size() + 1)).error().code == Errc::kInvalidArgument);
  REQUIRE(a.SendStruct(std::uint64_t{5}).has_value());
  CHECK(b.ReceiveStruct<std::uint32_t>(In(1s)).error().code == Errc::kProtocol);
}

TEST_CASE("Channel: a closed end is reported to the other one, and a silent one by the deadline", "[unit]") {
  auto ends = Channel::Pair();
  REQUIRE(ends.has_value());
  auto& [a, b] = *ends;
  CHECK(b.Receive(In(20ms)).error().code == Errc::kDeadlineExceeded);
  a.Close();
  CHECK(b.Readable());
  CHECK(b.Receive(In(1s)).error().code == Errc::kUnavailable);
  CHECK(b.SendStruct(1).error().code == Errc::kUnavailable);
}

TEST_CASE("Child process: its end is reported as it was", "[unit]") {
  auto missing = ChildProcess::Start("/nonexistent/program", {});
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().code == Errc::kNotFound);
  auto child = ChildProcess::Start("/bin/sh", {"-c", "exit 3"});
  REQUIRE(child.has_value());
  REQUIRE(child->WaitFor(5s));
  CHECK_FALSE(child->Succeeded());
  CHECK(child->Ending() == "exited with 3");
}

TEST_CASE("Child process: one that ignores SIGTERM is killed after its grace", "[unit]") {
  auto ends = Channel::Pair();
  REQUIRE(ends.has_value());
  const int fd = ends->second.fd();
  auto child = ChildProcess::Start("/bin/sh", {"-c", "trap '' TERM; echo x >&" + std::to_string(fd) + "; while :; do sleep 1; done"},
                                   {.keep_fd = fd});
  REQUIRE(child.has_value());
  ends->second.Close();
  REQUIRE(ends->first.Receive(In(5s)).has_value());
  CHECK(child->Running());
  child->Stop(50ms);
  CHECK_FALSE(child->Running());
  CHECK(child->Ending() == "killed by signal 9 (Killed)");
}

TEST_CASE("Routing: with sticky, a conversation stays with its worker, and every worker gets a share", "[unit]") {
  std::vector<Request> requests;
  for (std::uint64_t c = 0; c < 200; ++c) {
    requests.push_back(WithIds({0, 10 + c, 1000 + c}));
    requests.push_back(WithIds({0, 10 + c, 2000 + c, 3000 + c}));
  }
  const auto sticky = AssignWorkers(requests, Routing::kSticky, 4, 1);
  std::vector<int> share(4);
  for (std::size_t i = 0; i < requests.size(); i += 2) {
    CHECK(sticky[i] == sticky[i + 1]);
    share[sticky[i]]++;
  }
  for (const int count : share) CHECK(count > 20);
  const auto round_robin = AssignWorkers(requests, Routing::kRoundRobin, 4, 1);
  CHECK(round_robin[0] == 0);
  CHECK(round_robin[5] == 1);
  CHECK(AssignWorkers(requests, Routing::kRandom, 4, 1) == AssignWorkers(requests, Routing::kRandom, 4, 1));
  CHECK(AssignWorkers(requests, Routing::kRandom, 4, 1) != AssignWorkers(requests, Routing::kRandom, 4, 2));
}
