// Descriptors: the error names the process that lacks them, and no other process is affected.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <thread>

#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/few_descriptors.h"
#include "tests/support/process/lingering_socket.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/socket_pair.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::Eventually;
using test::FewDescriptors;
using test::KvmdProcess;
using test::LingeringSocket;
using test::StoppedProcess;
using test::WireClient;
using test::WireRegion;

WireClient Join(const KvmdProcess& kvmd, const std::string& name) {
  Result<WireClient> client = WireClient::Connect(kvmd.socket());
  KVM_REQUIRE_OK(client);
  KVM_REQUIRE_OK(client->Hello(name));
  return std::move(*client);
}

// Leaves kvmd so many descriptors; with -1, its original limit.
void LeaveTo(const KvmdProcess& kvmd, int left) {
  rlimit limit{};
  REQUIRE(::prlimit(kvmd.pid(), RLIMIT_NOFILE, nullptr, &limit) == 0);
  limit.rlim_cur = left < 0 ? limit.rlim_max : static_cast<rlim_t>(kvmd.SettledFds() + left);
  REQUIRE(::prlimit(kvmd.pid(), RLIMIT_NOFILE, &limit, nullptr) == 0);
}

// Of the calling thread.
bool BecomeUser2001() { return ::syscall(SYS_setresuid, -1, 2001, -1) == 0; }

constexpr std::size_t kManyLingering = 72;  // 64 may wait

// Sends each in a connection of its own, while kvmd stands still. Whether kvmd then takes no
// connection more of this user.
bool IsRefusedFor(std::vector<LingeringSocket>& lingering, const KvmdProcess& kvmd, StoppedProcess& stopped) {
  std::vector<WireClient> clients;
  for (LingeringSocket& one : lingering) {
    Result<WireClient> client = WireClient::Connect(kvmd.socket());
    if (!client || client->SendRaw("12", {one.socket.get()}) != 2) return false;
    one.socket.Reset();
    clients.push_back(std::move(*client));
  }
  stopped.Resume();
  return Eventually([&] {
    Result<WireClient> client = WireClient::Connect(kvmd.socket());
    const Result<test::Received> hello = client ? client->Hello("later") : Result<test::Received>(client.error());
    return !hello && hello.error().message.find("can't be closed") != std::string::npos;
  });
}

// A region of many segments, each in a file of its own; blocks lie in the first.
struct WideRegion : WireRegion {
  WideRegion(const std::string& name, int segments) : WireRegion(name, test::SmallSpec(), 8) {
    for (int i = 1; i < segments; ++i) {
      *descriptor.add_segments() = descriptor.segments(0);
      Result<OwnedMemory> memory = OwnedMemory::Create(name, descriptor.segments(0).size_bytes());
      KVM_REQUIRE_OK(memory);
      more.push_back(std::move(*memory));
    }
  }
  Status RegisterWide(WireClient& client) const {
    std::vector<int> descriptors = fds();
    for (const OwnedMemory& memory : more) descriptors.push_back(memory.fd());
    const Result<test::Received> reply = client.Call(RegisterMessage(), descriptors);
    return reply ? Status() : Status(reply.error());
  }

  std::vector<OwnedMemory> more;
};

std::size_t Count(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) ++count;
  return count;
}

// How often, lines that were left out among them.
std::size_t AcceptsFailed(const KvmdProcess& kvmd) {
  const std::string log = kvmd.Log(), left_out = "event=log_lines_left_out of=accept_failed count=";
  std::size_t count = Count(log, "event=accept_failed");
  for (std::size_t at = 0; (at = log.find(left_out, at)) != std::string::npos; at += left_out.size())
    count += std::stoul(log.substr(at + left_out.size()));
  return count;
}

}  // namespace

TEST_CASE("Descriptors: a kvmd that is out of them refuses the region, says that kvmd lacks them, and keeps the client", "[integration]") {
  KvmdProcess kvmd;
  WireClient client = Join(kvmd, "innocent");
  KVM_REQUIRE_OK(client.DeclareModel(test::SmallSpec()));
  const WideRegion region("pool", 20);
  LeaveTo(kvmd, 10);
  const Status refused = region.RegisterWide(client);
  KVM_CHECK_ERROR(refused, Errc::kResourceExhausted, "kvmd is out of descriptors (limit ");
  CHECK(client.QueryStatus().has_value());
  CHECK(kvmd.Log().find("event=out_of_descriptors") != std::string::npos);
  LeaveTo(kvmd, -1);
  KVM_REQUIRE_OK(region.RegisterWide(client));
  CHECK(kvmd.Log().find("client_dropped") == std::string::npos);
}

TEST_CASE("Descriptors: while kvmd has none left, new connections wait or get an error, and others are served", "[integration]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd;
  WireClient early = Join(kvmd, "early");
  LeaveTo(kvmd, 0);
  std::vector<WireClient> late;
  for (int i = 0; i < 4; ++i) {
    Result<WireClient> client = WireClient::Connect(kvmd.socket());
    KVM_REQUIRE_OK(client);
    late.push_back(std::move(*client));
  }
  REQUIRE(Eventually([&] { return AcceptsFailed(kvmd) > 0; }));
  CHECK(early.QueryStatus().has_value());
  LeaveTo(kvmd, -1);
  // There may be one descriptor for a connection, and none for watching its process.
  for (WireClient& client : late) {
    if (!client.Hello("late")) CHECK(client.ReadGoodbye().find("kvmd is out of descriptors") != std::string::npos);
  }
  CHECK(early.QueryStatus().has_value());
}

TEST_CASE("Descriptors: a kvmd that can't accept a connection pauses before the next try, and keeps its connections", "[integration]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd;
  WireClient early = Join(kvmd, "early");
  rlimit limit{};
  REQUIRE(::prlimit(kvmd.pid(), RLIMIT_NOFILE, nullptr, &limit) == 0);
  limit.rlim_cur = 3;  // less than it has
  REQUIRE(::prlimit(kvmd.pid(), RLIMIT_NOFILE, &limit, nullptr) == 0);
  Result<WireClient> late = WireClient::Connect(kvmd.socket());
  KVM_REQUIRE_OK(late);
  test::SleepMs(1500);  // lines that were left out are told after a second
  REQUIRE(Eventually([&] { return AcceptsFailed(kvmd) >= 3; }));
  CHECK(AcceptsFailed(kvmd) < 200);
  CHECK(early.QueryStatus().has_value());
  LeaveTo(kvmd, -1);
  KVM_REQUIRE_OK(late->Hello("late"));
  CHECK(early.QueryStatus().has_value());
}

TEST_CASE("Descriptors: a client that does not read its announcements keeps few of kvmd's, and gets all of them", "[integration]") {
  KvmdProcess kvmd({"--max-regions-per-client", "200", "--max-fds-per-client", "20000"});
  WireClient owner = Join(kvmd, "owner");
  KVM_REQUIRE_OK(owner.DeclareModel(test::SmallSpec()));
  constexpr int kRegions = 60, kSegments = 120;
  for (int i = 0; i < kRegions; ++i) KVM_REQUIRE_OK(WideRegion("pool" + std::to_string(i), kSegments).RegisterWide(owner));
  WireClient importer = Join(kvmd, "importer");
  const int before = kvmd.SettledFds();
  kvmwire::ClientMessage declare;
  declare.set_request_id(99);
  declare.mutable_declare_model()->set_spec(test::SmallSpec().Canonical());
  KVM_REQUIRE_OK(importer.Send(declare));
  CHECK(owner.QueryStatus().has_value());
  // One frame may wait in kvmd.
  CHECK(kvmd.SettledFds() <= before + static_cast<int>(kMaxFrameFds));
  int announced = 0;
  for (bool answered = false; !answered;) {
    Result<test::Received> received = importer.Receive();
    KVM_REQUIRE_OK(received);
    answered = received->message.has_declare_model_reply();
    announced += received->message.has_region_announce();
    if (received->message.has_region_announce()) CHECK(received->fds.size() == kSegments + 1);
  }
  CHECK(announced == kRegions);
}

TEST_CASE("Descriptors: a region that is withdrawn before a client could take its announcement is not announced", "[integration]") {
  KvmdProcess kvmd({"--max-fds-per-client", "20000"});
  WireClient owner = Join(kvmd, "owner");
  KVM_REQUIRE_OK(owner.DeclareModel(test::SmallSpec()));
  for (int i = 0; i < 10; ++i) KVM_REQUIRE_OK(WideRegion("pool" + std::to_string(i), 120).RegisterWide(owner));
  WireClient importer = Join(kvmd, "importer");
  kvmwire::ClientMessage declare;
  declare.set_request_id(99);
  declare.mutable_declare_model()->set_spec(test::SmallSpec().Canonical());
  KVM_REQUIRE_OK(importer.Send(declare));
  REQUIRE(Eventually([&] {
    const Result<kvmwire::StatusReply> status = owner.QueryStatus();
    return status && status->client_list_size() == 2 && status->client_list(1).queued_bytes() > 0;
  }));
  owner.Close();
  REQUIRE(Eventually([&] { return kvmd.Log().find("event=client_left") != std::string::npos; }));
  int announced = 0, withdrawn = 0;
  for (;;) {
    const Result<test::Received> received = importer.Receive();
    KVM_REQUIRE_OK(received);
    announced += received->message.has_region_announce();
    withdrawn += received->message.has_region_withdraw();
    if (received->message.has_declare_model_reply()) break;
  }
  CHECK(announced == withdrawn);
  CHECK(announced < 10);
}

TEST_CASE("Descriptors: a worker that is out of them keeps its connection, reports it, and maps the region later", "[integration]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd;
  const std::unique_ptr<test::Worker> importer = test::StartWorker({.socket = kvmd.socket(), .name = "importer"});
  test::RemoteWorker owner({.socket = kvmd.socket(), .name = "owner"});
  owner.Publish("early:4", 0);
  REQUIRE(Eventually([&] { return importer->client().Stats().mapped_regions == 1; }));
  {
    const FewDescriptors few(0);
    owner.Allocate("second");
    REQUIRE(Eventually([&] { return !importer->client().UnmappedRegions().empty(); }));
    const UnmappedRegion unmapped = importer->client().UnmappedRegions().front();
    CHECK(unmapped.name == "second");
    CHECK(unmapped.reason.code == Errc::kResourceExhausted);
    CHECK(unmapped.reason.message == few.Says());
    // What was mapped before stays so.
    CHECK(importer->FindAndImport("early:4", 0).wrong == 0);
    CHECK(importer->FindAndImport("early:4", 0).valid > 0);
    CHECK(importer->client().Stats().reconnects == 0);
  }
  CHECK(Eventually([&] { return importer->client().UnmappedRegions().empty() && importer->client().Stats().mapped_regions == 2; }));
  CHECK(importer->client().Stats().reconnects == 0);
}

TEST_CASE("Descriptors: a worker that can't take kvmd's registry names its own limit", "[integration]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd;
  ClientOptions options;
  options.socket_path = kvmd.socket();
  options.start_offline = true;
  const FewDescriptors few(2);  // a mailbox and a socket
  const Result<std::shared_ptr<Client>> client = Client::Connect(options);
  KVM_REQUIRE_OK(client);
  CHECK(Eventually([&] { return (*client)->last_error().message.find(few.Says()) != std::string::npos; }));
  CHECK((*client)->last_error().code == Errc::kResourceExhausted);
}

TEST_CASE("Reconnecting: a connection that fails just after the hello is tried again after pauses that double", "[integration]") {
  const test::TempDir dir;
  const std::string path = dir / "kvmd.sock";
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, path.c_str(), sizeof(address.sun_path) - 1);
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(::listen(listener.get(), 64) == 0);
  std::atomic<int> accepted{0};
  std::atomic<bool> stop{false};
  // A kvmd whose registry no worker can use.
  std::thread server([&] {
    while (!stop) {
      const UniqueFd socket(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!socket || stop) return;
      ++accepted;
      kvmwire::ServerMessage hello;
      hello.mutable_hello_reply()->set_protocol_version(kProtocolVersion);
      const std::string payload = hello.SerializeAsString();
      test::SendRaw(socket.get(), test::RawFrame(payload, static_cast<std::uint32_t>(payload.size()), 1), {0});
      char buffer[256];
      while (::recv(socket.get(), buffer, sizeof(buffer), 0) > 0) continue;
    }
  });
  {
    ClientOptions options;
    options.socket_path = path;
    options.start_offline = true;
    options.reconnect_min = 10ms;
    options.reconnect_max = 60s;
    const Result<std::shared_ptr<Client>> client = Client::Connect(options);
    KVM_REQUIRE_OK(client);
    test::SleepMs(2000);
  }
  stop = true;
  ::shutdown(listener.get(), SHUT_RDWR);
  server.join();
  // 10 ms doubled, half of it at least: nine tries fill two seconds. Without pauses it would be a
  // hundred.
  CHECK(accepted >= 2);
  CHECK(accepted <= 12);
}

TEST_CASE("Announcements: a region whose descriptor exceeds the limit is refused, and not announced", "[integration]") {
  KvmdProcess kvmd;
  WireClient owner = Join(kvmd, "owner"), other = Join(kvmd, "other");
  KVM_REQUIRE_OK(owner.DeclareModel(test::SmallSpec()));
  KVM_REQUIRE_OK(other.DeclareModel(test::SmallSpec()));
  WireRegion region("pool", test::SmallSpec(), 8);
  SECTION("in a field that is known") {
    region.descriptor.set_fingerprint(std::string(kMaxDescriptorBytes, 'x'));
    KVM_CHECK_ERROR(region.Register(owner), Errc::kInvalidArgument, "the limit is 393216");
  }
  SECTION("in fields that are not: they are left out") {
    // Field 500, as a later protocol might have it.
    std::string unknown = region.descriptor.SerializeAsString();
    std::string padding("\xa2\x1f\x80\x80\x3c", 5);
    padding.append(std::size_t{60} << 14, 'x');
    kvmwire::ClientMessage message;
    message.set_request_id(1);
    REQUIRE(message.mutable_register_region()->mutable_region()->ParseFromString(unknown + padding));
    REQUIRE(message.ByteSizeLong() > 900'000);
    KVM_REQUIRE_OK(owner.Send(message, region.fds()));
    const Result<test::Received> announced = other.Announcement();
    KVM_REQUIRE_OK(announced);
    CHECK(announced->message.region_announce().descriptor_().SerializeAsString() == region.descriptor.SerializeAsString());
  }
  CHECK(other.QueryStatus().has_value());
  CHECK(owner.QueryStatus().has_value());
  CHECK(Count(kvmd.Log(), "client_dropped") == 0);
}

// kvmd gets the last descriptor of that socket: it stands still until the client has closed its
// own. Where Session does not look at what kind of descriptors came, kvmd waits in the first two
// sections; where Acceptor does not have urgent bytes come in their order, in the third; and where
// CloseSocket closes at once, in the last two: seen.
TEST_CASE("Descriptors: a socket whose close waits for somebody stops no other client", "[integration]") {
  KvmdProcess kvmd;
  WireClient bystander = Join(kvmd, "bystander"), hostile = Join(kvmd, "hostile");
  LingeringSocket lingering;
  const std::vector<int> sent{lingering.socket.get()};
  StoppedProcess stopped(kvmd.pid());
  SECTION("in a message") { KVM_REQUIRE_OK(hostile.Send(WireRegion("of sockets", test::SmallSpec(), 8).RegisterMessage(), sent)); }
  SECTION("in a message that does not end") { REQUIRE(hostile.SendRaw("12", sent) == 2); }
  SECTION("with an urgent byte") { REQUIRE(test::SendRaw(hostile.fd(), "x", sent, MSG_OOB) == 1); }
  SECTION("behind what its sender is dropped for") {
    REQUIRE(hostile.SendRaw("this is no frame") > 0);
    REQUIRE(hostile.SendRaw("x", sent) == 1);
  }
  SECTION("on a connection that ends before it is accepted") {
    Result<WireClient> another = WireClient::Connect(kvmd.socket());
    KVM_REQUIRE_OK(another);
    REQUIRE(another->SendRaw("x", sent) == 1);
  }
  lingering.socket.Reset();
  hostile.Close();
  stopped.Resume();
  for (int i = 0; i < 3; ++i) KVM_REQUIRE_OK(bystander.QueryStatus());
  CHECK(Eventually([&] { return bystander.QueryStatus()->clients() == 1; }));
}

// Who waits in a close goes on with a further signal, so kvmd gets none. Where BeginStop closes the
// listening socket itself, kvmd waits in the first section, and where Waiting closes a connection
// itself, in the second: seen.
TEST_CASE("Descriptors: a socket whose close waits for somebody keeps no kvmd from ending", "[integration]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd;
  LingeringSocket lingering;
  std::vector<WireClient> waiting;
  const auto connect = [&](int count) {
    for (int i = 0; i < count; ++i) {
      Result<WireClient> client = WireClient::Connect(kvmd.socket());
      KVM_REQUIRE_OK(client);
      waiting.push_back(std::move(*client));
    }
    REQUIRE(waiting.back().SendRaw("x", {lingering.socket.get()}) == 1);
    lingering.socket.Reset();
    REQUIRE(::kill(kvmd.pid(), SIGTERM) == 0);
  };
  SECTION("on a connection that has not been taken") {
    rlimit limit{};
    REQUIRE(::prlimit(kvmd.pid(), RLIMIT_NOFILE, nullptr, &limit) == 0);
    limit.rlim_cur = 3;  // less than it has
    REQUIRE(::prlimit(kvmd.pid(), RLIMIT_NOFILE, &limit, nullptr) == 0);
    connect(1);
  }
  SECTION("on one that has had no turn") {
    // kvmd takes 256 at a time, and half of them have a turn before it looks for signals: mostly,
    // so this is tried more than once.
    static_cast<void>(GENERATE(1, 2, 3));
    StoppedProcess stopped(kvmd.pid());
    connect(256);
    stopped.Resume();
  }
  CHECK(Eventually([&] { return !kvmd.running(); }, 30s));
}

// Counted, so that what one user can leave has a limit. Where Server does not ask whether the
// closer is behind, all are taken: seen.
TEST_CASE("Descriptors: from a user whose sockets can't be closed nothing more is taken, and others go on", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to connect as another user");
  KvmdProcess kvmd;
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  WireClient bystander = Join(kvmd, "bystander");
  std::vector<LingeringSocket> lingering(kManyLingering);
  StoppedProcess stopped(kvmd.pid());
  bool refused = false;
  std::thread([&] { refused = BecomeUser2001() && IsRefusedFor(lingering, kvmd, stopped); }).join();
  CHECK(refused);
  KVM_REQUIRE_OK(bystander.QueryStatus());
}

// Where kvmd does not start its SocketCloser, those connections wait behind the descriptors of
// before, and the last one is not accepted: seen.
TEST_CASE("Descriptors: connections that are refused leave none in kvmd, though others can't be closed", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to connect as another user");
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  KvmdProcess kvmd;
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  std::vector<LingeringSocket> lingering(kManyLingering);
  StoppedProcess stopped(kvmd.pid());
  bool refused = false;
  std::thread([&] { refused = BecomeUser2001() && IsRefusedFor(lingering, kvmd, stopped); }).join();
  REQUIRE(refused);
  LeaveTo(kvmd, 400);
  const UniqueFd any(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  int sent = 0;
  std::thread([&] {
    if (!BecomeUser2001()) return;
    for (int tries = 0; sent < 1'000 && tries < 100'000; ++tries) {
      Result<WireClient> client = WireClient::Connect(kvmd.socket());
      if (client) sent += client->SendRaw("x", {any.get()}) == 1;  // else kvmd has ended it before
    }
  }).join();
  CHECK(sent == 1'000);
  WireClient late = Join(kvmd, "late");
  KVM_REQUIRE_OK(late.QueryStatus());
}
