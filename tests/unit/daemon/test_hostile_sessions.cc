// What hostile connections cost the others at the sockets: sessions of two users share one broker,
// one order of turns and one thread, which the test runs step by step. Work, bytes and descriptors
// are counted, time is not.
//
// What each case is against is said at the case; each was seen to fail without its defence.
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <boost/asio/io_context.hpp>

#include "daemon/broker/field_count.h"
#include "daemon/server/session.h"
#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/data/wire_schema.h"
#include "tests/support/process/few_descriptors.h"
#include "tests/support/process/held_closer.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/socket_pair.h"

namespace kvm::test {
namespace {

using daemon::kSliceUnits;
using daemon::WorkMeter;
using daemon::WorkUnits;

constexpr std::uint32_t kBystander = 12'345;
// A slice that has begun, a slice of the other user's, and what can't be cut.
constexpr WorkUnits kMostBefore = 4 * kSliceUnits;

// The kernel names the user who made the pair. By the system call itself, which changes one thread
// only.
std::unique_ptr<SocketPair> SocketsOf(std::uint32_t uid) {
  std::unique_ptr<SocketPair> sockets;
  std::thread([&] {
    if (uid == ::geteuid() || ::syscall(SYS_setresuid, -1, uid, -1) == 0) sockets = std::make_unique<SocketPair>();
  }).join();
  REQUIRE(sockets);
  return sockets;
}

struct Member {
  WireClient client;
  std::shared_ptr<daemon::Session> session;
  bool ended = false;
};

// The server without its listener: as many sessions as the test makes.
struct Sessions {
  explicit Sessions(const Config& its_config = {}) : config(its_config) { daemon::SetLogLevel(daemon::LogLevel::kError); }
  ~Sessions() {
    for (const auto& member : members) member->session->Close("");
  }

  Member& Connect(std::uint32_t uid = ::geteuid()) {
    const std::unique_ptr<SocketPair> sockets = SocketsOf(uid);
    daemon::Session::Socket socket(context);
    boost::system::error_code error;
    socket.assign(boost::asio::local::stream_protocol(), sockets->theirs.Release(), error);
    REQUIRE_FALSE(error);
    members.push_back(std::make_unique<Member>(Member{WireClient(std::move(sockets->ours)), nullptr}));
    Member& member = *members.back();
    member.session = std::make_shared<daemon::Session>(std::move(socket), config, broker, turns, loads, closer,
                                                       [&member](daemon::ClientId) { member.ended = true; });
    member.session->Start();
    return member;
  }
  Member& Join(std::uint32_t uid = ::geteuid()) {
    Member& member = Connect(uid);
    kvmwire::ClientMessage hello;
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    hello.mutable_hello()->set_client_name("client");
    hello.mutable_hello()->set_wants_payload(true);
    KVM_REQUIRE_OK(member.client.Send(hello));
    Run();
    KVM_REQUIRE_OK(member.client.Receive());
    return member;
  }
  // What the sockets tell, and one turn.
  void Step() {
    context.restart();
    context.poll();
    turns.Run();
  }
  void Run() {
    do Step();
    while (turns.waiting() > 0);
  }
  static bool HasAnswer(const Member& member) {
    pollfd socket{member.client.fd(), POLLIN, 0};
    return ::poll(&socket, 1, 0) == 1;
  }
  // Work until a ping is answered.
  WorkUnits Ping(Member& member) {
    kvmwire::ClientMessage ping;
    ping.set_request_id(1);
    ping.mutable_ping();
    KVM_REQUIRE_OK(member.client.Send(ping));
    const WorkUnits before = WorkMeter::spent();
    while (!HasAnswer(member)) Step();
    KVM_REQUIRE_OK(member.client.Receive());
    return WorkMeter::spent() - before;
  }
  std::size_t ended() const {
    return static_cast<std::size_t>(std::count_if(members.begin(), members.end(), [](const auto& member) { return member->ended; }));
  }

  const Config config;
  DescriptorCloser closer;  // outlives what waits in the context
  boost::asio::io_context context;
  Broker broker{config};
  daemon::FairTurns turns{[] {}};
  daemon::UserLoads loads{config};
  std::vector<std::unique_ptr<Member>> members;
};

std::string Framed(const kvmwire::ClientMessage& message) {
  const std::string payload = message.SerializeAsString();
  return RawFrame(payload, static_cast<std::uint32_t>(payload.size()), 0);
}

}  // namespace

// Without a budget in Session::ReadAvailable a ping of the other user's waits for all frames of a
// connection, and with turns of connections (Session::AskForTurn) for a slice of each: both seen.
TEST_CASE("Hostile: a ping waits for one slice of a user whose connections are full of frames", "[unit]") {
  if (::geteuid() != 0) KVM_SKIP("only root can connect as another user");
  Sessions node;
  kvmwire::ClientMessage ping;
  ping.mutable_ping();
  std::string pings;
  for (int i = 0; i < 5000; ++i) pings += Framed(ping);
  std::vector<Member*> attackers;
  for (int i = 0; i < 24; ++i) attackers.push_back(&node.Join());
  Member& bystander = node.Join(kBystander);
  for (Member* attacker : attackers) REQUIRE(attacker->client.SendRaw(pings) == static_cast<ssize_t>(pings.size()));
  node.context.restart();
  node.context.poll();  // all of them wait for a turn
  WorkUnits worst = 0;
  const WorkUnits before = WorkMeter::spent();
  while (node.turns.waiting() > 0) worst = std::max(worst, node.Ping(bystander));
  CHECK(WorkMeter::spent() - before > 100 * kSliceUnits);  // or the case shows nothing
  CHECK(worst <= kMostBefore);
}

// Without DiscardUnknownFields in Session::HandleFrame the importer gets 300 KB: seen.
TEST_CASE("Hostile: fields that kvmd does not know travel from no connection to another one", "[unit]") {
  Sessions node;
  Member &owner = node.Join(), &importer = node.Join();
  kvmwire::ClientMessage declare;
  declare.set_request_id(1);
  declare.mutable_declare_model()->set_spec(LlamaSpec().Canonical());
  for (Member* member : {&owner, &importer}) {
    KVM_REQUIRE_OK(member->client.Send(declare));
    node.Run();
    KVM_REQUIRE_OK(member->client.Receive());
  }
  const WireRegion region("pool", LlamaSpec(), 8);
  // Once more the descriptor, with a field that it does not have: parsers put both together.
  std::string payload = region.RegisterMessage().SerializeAsString();
  payload += WireBytes(kvmwire::ClientMessage::kRegisterRegionFieldNumber,
                       WireBytes(kvmwire::RegisterRegion::kRegionFieldNumber, WireBytes(500, std::string(300'000, 'x'))));
  const std::string frame = RawFrame(payload, static_cast<std::uint32_t>(payload.size()), 2);
  std::size_t sent = static_cast<std::size_t>(owner.client.SendRaw(frame, region.fds()));
  for (; sent < frame.size(); node.Run()) {
    const ssize_t more = owner.client.SendRaw(std::string_view(frame).substr(sent));
    if (more > 0) sent += static_cast<std::size_t>(more);
  }
  node.Run();
  const Result<Received> announced = importer.client.Receive();
  KVM_REQUIRE_OK(announced);
  REQUIRE(announced->message.has_region_announce());
  CHECK(announced->message.ByteSizeLong() < 10'000);
}

TEST_CASE("Fields: a frame full of them ends its connection, and is not parsed", "[unit]") {
  Sessions node;
  Member& member = node.Join();
  kvmwire::ClientMessage message;
  message.set_request_id(1);
  // Of two bytes each.
  for (std::size_t i = 0; i <= daemon::kMaxFields; ++i) message.mutable_register_region()->mutable_region()->add_parts();
  KVM_REQUIRE_OK(member.client.Send(message));
  node.Run();
  CheckSays(member.client.ReadGoodbye(), "fields");
  CHECK(member.ended);
}

// Without Broker::Behind in Session::Paused, kvmd reads all 3 MB and keeps an answer to each: seen.
TEST_CASE("Hostile: a client that does not take an announcement has few answers waiting behind it", "[unit]") {
  Sessions node;
  Member &owner = node.Join(), &deaf = node.Join();
  kvmwire::ClientMessage declare;
  declare.set_request_id(1);
  declare.mutable_declare_model()->set_spec(LlamaSpec().Canonical());
  for (Member* member : {&owner, &deaf}) {
    KVM_REQUIRE_OK(member->client.Send(declare));
    node.Run();
    KVM_REQUIRE_OK(member->client.Receive());
  }
  // Of 120 segments each: the third is more than kvmd has in flight to one client.
  for (int i = 0; i < 3; ++i) {
    WireRegion region("pool-" + std::to_string(i), LlamaSpec(), 8);
    std::vector<int> fds = region.fds();
    std::vector<OwnedMemory> segments;
    for (int segment = 1; segment < 120; ++segment) {
      *region.descriptor.add_segments() = region.descriptor.segments(0);
      Result<OwnedMemory> memory = OwnedMemory::Create("segment", region.descriptor.segments(0).size_bytes());
      KVM_REQUIRE_OK(memory);
      fds.push_back(memory->fd());
      segments.push_back(std::move(*memory));
    }
    KVM_REQUIRE_OK(owner.client.Send(region.RegisterMessage(), fds));
    node.Run();
    KVM_REQUIRE_OK(owner.client.Receive());
  }
  std::string frames;
  while (frames.size() < 3'000'000) frames += Framed(declare);
  std::size_t sent = 0;
  for (int idle = 0; idle < 20 && sent < frames.size(); node.Run()) {
    const ssize_t some = deaf.client.SendRaw(std::string_view(frames).substr(sent));
    idle = some > 0 ? 0 : idle + 1;
    if (some > 0) sent += static_cast<std::size_t>(some);
  }
  CHECK(sent < 1'500'000);  // what the socket takes, and what kvmd reads at once
  CHECK_FALSE(deaf.ended);
}

// Without reader_.held_bytes() in Session::NoteLoad no connection ends and kvmd holds 14 MB: seen.
TEST_CASE("Hostile: the beginnings of messages that never end count for their user, over all connections", "[unit]") {
  Config config;
  config.max_queue_bytes_per_user = 2 << 20;
  Sessions node(config);
  std::vector<Member*> attackers;
  for (int i = 0; i < 16; ++i) attackers.push_back(&node.Join());
  const std::string begun = RawFrame(std::string(900'000, 'x'), 1'000'000, 0);
  std::vector<std::size_t> sent(attackers.size());
  const auto send_some = [&](std::size_t i) {
    if (attackers[i]->ended || sent[i] == begun.size()) return false;
    const ssize_t some = attackers[i]->client.SendRaw(std::string_view(begun).substr(sent[i]));
    if (some > 0) sent[i] += static_cast<std::size_t>(some);
    return true;
  };
  for (bool more = true; more; node.Run()) {
    more = false;
    for (std::size_t i = 0; i < attackers.size(); ++i) more = send_some(i) || more;
  }
  std::size_t held = 0;
  for (std::size_t i = 0; i < attackers.size(); ++i) held += attackers[i]->ended ? 0 : sent[i];
  CHECK(held <= config.max_queue_bytes_per_user + 256 * 1024);  // what it reads at once
  CHECK(node.ended() > 0);
  CHECK(node.ended() < attackers.size());
}

// Without reader_.held_fds() in Session::NoteLoad, or where Session::KeptWaiting does not look at
// it, kvmd holds 2,580 descriptors: both seen.
TEST_CASE("Hostile: descriptors of messages that never end are few, over all connections of a user", "[unit]") {
  Config config;
  config.max_waiting_fds_per_user = 300;
  Sessions node(config);
  std::vector<Member*> attackers;
  for (int i = 0; i < 20; ++i) attackers.push_back(&node.Join());
  Member* const bystander = ::geteuid() == 0 ? &node.Join(kBystander) : nullptr;
  const int before = OpenFds();
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (Member* attacker : attackers) {
    REQUIRE(attacker->client.SendRaw(RawFrame("x", 1000, kMaxFrameFds), std::vector<int>(kMaxFrameFds, null.get())) > 0);
    node.Run();
  }
  CHECK(OpenFds() - before <= 300 + static_cast<int>(kMaxFrameFds) + 1);
  if (bystander == nullptr) KVM_SKIP("only root can connect as another user: no bystander");
  CHECK(node.Ping(*bystander) <= kMostBefore);
}

// With a Session::Send that closes the connection instead, the client gets no answer: seen.
TEST_CASE("kvmd answers: one whose descriptors kvmd can't keep is answered with the error, and the connection stays", "[unit]") {
  if (kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  Sessions node;
  Member& member = node.Join();
  kvmwire::ServerMessage large, answer;
  large.set_request_id(1);
  large.mutable_status_reply()->set_server_version(std::string(900'000, 'x'));
  member.session->Send(large, {});  // more than the socket takes, so that the next one has to wait
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  answer.set_request_id(2);
  answer.mutable_empty();
  {
    const FewDescriptors few(0);
    member.session->Send(answer, {null.get()});
  }
  std::vector<Result<Received>> answers;
  std::thread reads([&] {
    for (int i = 0; i < 2; ++i) answers.push_back(member.client.Receive());
  });
  while (!member.ended && !member.session->drained()) node.Run();
  reads.join();
  REQUIRE(answers.at(0).has_value());
  REQUIRE(answers.at(1).has_value());
  CHECK(answers[1]->message.request_id() == 2);
  CheckSays(answers[1]->message.error().message(), "kvmd is out of descriptors");
  CHECK_FALSE(member.ended);
}

// Without Session::QueueOverLimit the queue has 8 MB and the connection stays: seen.
TEST_CASE("kvmd: a client that leaves more unread than one connection may is told the option and ends", "[unit]") {
  Config config;
  config.max_queue_bytes = 1 << 20;
  Sessions node(config);
  Member& member = node.Join();
  kvmwire::ServerMessage announcement;
  announcement.mutable_status_reply()->set_server_version(std::string(100'000, 'x'));
  for (int i = 0; i < 80; ++i) member.session->Send(announcement, {});
  CHECK(member.session->queued_bytes() <= config.max_queue_bytes + 200'000);
  node.Run();
  CHECK(member.ended);
}

// Where PeerFd::Reset closes at once, none is left: seen.
TEST_CASE("Hostile: the memory of a message that does not end is not freed by kvmd's thread", "[unit]") {
  Sessions node;
  Member& member = node.Join();
  const Result<OwnedMemory> memory = OwnedMemory::Create("large", std::size_t{1} << 20);
  KVM_REQUIRE_OK(memory);
  const FileId file = FileIdOf(memory->fd());
  REQUIRE(member.client.SendRaw("12", {memory->fd()}) == 2);
  node.Run();
  REQUIRE(DescriptorsOf(file) == 2);
  HeldCloser held(node.closer, ::geteuid());
  member.client.Close();
  node.Run();
  REQUIRE(member.ended);
  CHECK(DescriptorsOf(file) == 2);
  held.Release();
  CHECK(Eventually([&] { return DescriptorsOf(file) == 1; }));
}

// Where Session does not look at what kind of descriptors came, it goes on: seen.
TEST_CASE("Hostile: a descriptor that is not of memory ends its connection", "[unit]") {
  Sessions node;
  Member& member = node.Join();
  const SocketPair sent;
  const WireRegion region("of sockets", LlamaSpec(), 8);
  KVM_REQUIRE_OK(member.client.Send(region.RegisterMessage(), {sent.ours.get()}));
  node.Run();
  CHECK(member.ended);
}

}  // namespace kvm::test
