// InterruptScope: calls that wait for a kvmd that does not answer end when their thread is told to,
// and leave behind what a passed deadline would have left.
#include <signal.h>

#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::Eventually;
using test::KvmdProcess;
using test::Worker;
using test::WorkerOptions;

// A kvmd that takes connections and answers nothing, until Continue or the end of the test.
class SilentKvmd {
 public:
  const KvmdProcess& process() const { return kvmd_; }
  void Stop() { REQUIRE(::kill(kvmd_.pid(), SIGSTOP) == 0); }
  void Continue() { ::kill(kvmd_.pid(), SIGCONT); }
  ~SilentKvmd() { Continue(); }

 private:
  KvmdProcess kvmd_;
};

RegionOptions SmallRegion(const std::string& name) {
  RegionOptions options;
  options.name = name;
  options.geometry = Geometry::Contiguous(4, 4096);
  return options;
}

std::unique_ptr<Worker> Start(const SilentKvmd& kvmd, const std::string& name) {
  WorkerOptions options;
  options.socket = kvmd.process().socket();
  options.name = name;
  return test::StartWorker(std::move(options));
}

// Far beyond the test: a call that is not interrupted runs into the test's own limit.
const Deadline kNever = Deadline::max();

// None: no error.
template <class T>
std::optional<Errc> CodeOf(const Result<T>& result) {
  return result ? std::nullopt : std::optional(result.error().code);
}

}  // namespace

TEST_CASE("Interrupt: an interrupted call that waits for a silent kvmd ends as if its deadline had passed", "[integration]") {
  SilentKvmd kvmd;
  const auto worker = Start(kvmd, "worker");
  ModelSpec other = test::SmallSpec();
  other.model_id = "another";
  worker->Publish("a:4", 0);
  KVM_REQUIRE_OK(worker->Flush());
  const Match match = worker->Find("a:4");
  REQUIRE(match.size() == 4);
  const std::vector<std::pair<std::string, std::function<std::optional<Errc>()>>> calls = {
      {"declare", [&] { return CodeOf(worker->client().DeclareModel(other, kNever)); }},
      {"allocate", [&] { return CodeOf(worker->client().AllocateRegion(worker->model(), SmallRegion("second"), kNever)); }},
      {"adopt", [&] { return CodeOf(worker->client().AdoptRegion(worker->model(), SmallRegion("third"), kNever)); }},
      {"reclaim", [&] { return CodeOf(worker->client().ReclaimOrphans({}, kNever)); }},
      {"hold", [&] { return CodeOf(worker->client().AcquireLease(match, std::chrono::seconds(10), kNever)); }},
      {"flush",
       [&] {
         worker->Publish("b:4", 8);
         return CodeOf(worker->region().Flush(kNever));
       }},
      {"unregister", [&] { return CodeOf(worker->region().Unregister(kNever)); }},
  };
  kvmd.Stop();
  for (const auto& [name, call] : calls) {
    INFO(name);
    int questions = 0;
    const InterruptScope interrupt([&] { return ++questions == 2; });
    CHECK(call() == Errc::kDeadlineExceeded);
    CHECK(interrupt.interrupted());
    CHECK(questions == 2);
  }
}

TEST_CASE("Interrupt: connecting to a silent kvmd ends", "[integration]") {
  SilentKvmd kvmd;
  kvmd.Stop();
  ClientOptions options;
  options.socket_path = kvmd.process().socket();
  options.timeout = std::chrono::hours(1);
  const InterruptScope interrupt([] { return true; });
  CHECK_FALSE(Client::Connect(options));
  CHECK(interrupt.interrupted());
}

TEST_CASE("Interrupt: the region of an interrupted allocation does not stay registered", "[integration]") {
  SilentKvmd kvmd;
  const auto worker = Start(kvmd, "worker");
  kvmd.Stop();
  {
    const InterruptScope interrupt([] { return true; });
    CHECK(CodeOf(worker->client().AllocateRegion(worker->model(), SmallRegion("name"), kNever)) == Errc::kDeadlineExceeded);
  }
  kvmd.Continue();
  CHECK(Eventually([&] {
    const auto again = worker->client().AllocateRegion(worker->model(), SmallRegion("name"), After(std::chrono::seconds(5)));
    return again.has_value();
  }));
}

TEST_CASE("Interrupt: once a thread is interrupted, its waits end at once, and those of other threads go on", "[integration]") {
  SilentKvmd kvmd;
  const auto worker = Start(kvmd, "worker");
  kvmd.Stop();
  std::optional<Errc> elsewhere = Errc::kCancelled;
  {
    int questions = 0;
    const InterruptScope interrupt([&] {
      ++questions;
      return true;
    });
    for (int i = 0; i < 3; ++i) CHECK(CodeOf(worker->client().DeclareModel(worker->model().spec, kNever)) == Errc::kDeadlineExceeded);
    CHECK(questions == 1);
    std::thread other([&] { elsewhere = CodeOf(worker->client().ReclaimOrphans({}, After(std::chrono::seconds(20)))); });
    kvmd.Continue();
    other.join();
  }
  CHECK_FALSE(elsewhere);
  KVM_REQUIRE_OK(worker->client().DeclareModel(worker->model().spec, kNever));
}

TEST_CASE("Interrupt: the function that is asked may call libkvclient, and the inner of two scopes counts", "[integration]") {
  SilentKvmd kvmd;
  const auto worker = Start(kvmd, "worker");
  kvmd.Stop();
  int outer_questions = 0, inner_questions = 0;
  const InterruptScope outer([&] {
    ++outer_questions;
    return true;
  });
  {
    const InterruptScope inner([&] {
      ++inner_questions;
      // This one is not interrupted: it ends at its deadline.
      CHECK(CodeOf(worker->client().ReclaimOrphans({}, After(std::chrono::milliseconds(1)))) == Errc::kDeadlineExceeded);
      return inner_questions == 3;
    });
    CHECK(CodeOf(worker->client().ReclaimOrphans({}, kNever)) == Errc::kDeadlineExceeded);
  }
  CHECK(inner_questions == 3);
  CHECK(outer_questions == 0);
  CHECK(CodeOf(worker->client().ReclaimOrphans({}, kNever)) == Errc::kDeadlineExceeded);
  CHECK(outer_questions == 1);
}
