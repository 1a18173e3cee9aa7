// A kvmd in this process against clients that break the protocol: each is dropped with the reason,
// and a bystander notices nothing.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <thread>

#include "proto/shm/registry_view.h"
#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/kvmd/server_runner.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/process/socket_pair.h"

namespace kvm::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

bool Answers(WireClient& client) {
  kvmwire::ClientMessage ping;
  ping.mutable_ping();
  return client.Call(std::move(ping)).has_value();
}

std::string HelloBytes() {
  kvmwire::ClientMessage message;
  message.mutable_hello()->set_protocol_version(kProtocolVersion);
  return message.SerializeAsString();
}

std::string Framed(const std::string& payload) { return RawFrame(payload, static_cast<std::uint32_t>(payload.size()), 0); }

TEST_CASE("kvmd: a client that breaks the protocol is told why and dropped, and others are served", "[unit]") {
  const ServerRunner server;
  WireClient bystander = server.Join("bystander");
  WireClient client = server.Connect();
  const UniqueFd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  std::string reason;
  SECTION("no frame at all") {
    client.SendRaw("GET / HTTP/1.1\r\nHost: kvmd\r\n\r\n");
    reason = "not a kvmd frame";
  }
  SECTION("an oversized frame") {
    client.SendRaw(RawFrame("", static_cast<std::uint32_t>(kMaxFrameBytes) + 1, 0));
    reason = "the limit is";
  }
  SECTION("a payload that is no message") {
    client.SendRaw(Framed("\xff\xff\xff\xff"));
    reason = "can't be parsed";
  }
  SECTION("an empty message") {
    client.SendRaw(Framed(""));
    reason = "first message is not a hello";
  }
  SECTION("a first message that is no hello") {
    kvmwire::ClientMessage ping;
    ping.mutable_ping();
    KVM_REQUIRE_OK(client.Send(ping));
    reason = "first message is not a hello";
  }
  SECTION("a name that is too long") {
    kvmwire::ClientMessage hello;
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    hello.mutable_hello()->set_client_name(std::string(kMaxNameBytes + 1, 'x'));
    KVM_REQUIRE_OK(client.Send(hello));
    reason = "name is too long";
  }
  SECTION("descriptors that are announced and do not come") {
    client.SendRaw(RawFrame(HelloBytes(), static_cast<std::uint32_t>(HelloBytes().size()), 2));
    reason = "2 descriptors, 0 came";
  }
  SECTION("more descriptors than any frame may have") {
    client.SendRaw(RawFrame("", 0, kMaxFrameFds + 1));
    reason = "descriptors";
  }
  SECTION("descriptors that nobody announced") {
    client.SendRaw(Framed(HelloBytes()), {null.get(), null.get()});
    reason = "no frame announced";
  }
  SECTION("descriptors with a hello") {
    client.SendRaw(RawFrame(HelloBytes(), static_cast<std::uint32_t>(HelloBytes().size()), 1), {null.get()});
    reason = "takes none";
  }
  SECTION("a descriptor of a socket, its own") {
    client.SendRaw("12", {client.fd()});
    reason = "not of memory";
  }
  SECTION("a descriptor of a pipe") {
    int ends[2];
    REQUIRE(::pipe2(ends, O_CLOEXEC) == 0);
    const UniqueFd read(ends[0]), write(ends[1]);
    client.SendRaw("12", {write.get()});
    reason = "not of memory";
  }
  SECTION("a descriptor of a file") {
    const UniqueFd file(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    client.SendRaw("12", {file.get()});
    reason = "not of memory";
  }
  SECTION("a descriptor of a directory's path") {
    const UniqueFd path(::open("/", O_PATH | O_CLOEXEC));
    client.SendRaw("12", {path.get()});
    reason = "not of memory";
  }
  SECTION("a hello twice") {
    KVM_REQUIRE_OK(client.Hello());
    client.SendRaw(Framed(HelloBytes()));
    reason = "second hello";
  }
  SECTION("a message without a body") {
    KVM_REQUIRE_OK(client.Hello());
    kvmwire::ClientMessage nothing;
    nothing.set_request_id(77);
    KVM_REQUIRE_OK(client.Send(nothing));
    Result<Received> reply = client.Receive();
    KVM_REQUIRE_OK(reply);
    CHECK(reply->message.request_id() == 77);
    CHECK(reply->message.error().code() == static_cast<std::uint32_t>(Errc::kProtocol));
    reason = "unknown message";
  }
  SECTION("publish records that are cut off") {
    KVM_REQUIRE_OK(client.Hello());
    kvmwire::ClientMessage publish;
    publish.mutable_publish()->set_records(std::string(41, 'x'));
    KVM_REQUIRE_OK(client.Send(publish));
    reason = "cut off";
  }
  SECTION("more publish records than a batch may have") {
    KVM_REQUIRE_OK(client.Hello());
    kvmwire::ClientMessage publish;
    publish.mutable_publish()->set_records(std::string((kMaxPublishBatch + 1) * 40, 'x'));
    KVM_REQUIRE_OK(client.Send(publish));
    reason = "too many records";
  }
  SECTION("more blocks to retract than a batch may have") {
    KVM_REQUIRE_OK(client.Hello());
    kvmwire::ClientMessage retract;
    for (std::uint32_t i = 0; i <= kMaxPublishBatch; ++i) retract.mutable_retract()->add_blocks(i);
    KVM_REQUIRE_OK(client.Send(retract));
    reason = "too many blocks";
  }
  const std::string goodbye = client.ReadGoodbye();
  CAPTURE(goodbye, reason);
  CHECK(goodbye.find(reason) != std::string::npos);
  CHECK(Answers(bystander));
  Result<kvmwire::StatusReply> status = bystander.QueryStatus();
  KVM_REQUIRE_OK(status);
  CHECK(status->clients() == 1);
  CHECK(status->protocol_errors() == 1);
}

TEST_CASE("kvmd: another protocol version is refused by its number", "[unit]") {
  const ServerRunner server;
  WireClient client = server.Connect();
  kvmwire::ClientMessage message;
  message.mutable_hello()->set_protocol_version(kProtocolVersion + 1);
  KVM_CHECK_ERROR(client.Call(std::move(message)), Errc::kVersionMismatch, std::to_string(kProtocolVersion + 1));
  CHECK(client.ReadGoodbye() != "still open");
}

TEST_CASE("kvmd: clients that stall before the hello or inside a frame are dropped in time, and only those", "[unit]") {
  daemon::Config config;
  config.hello_timeout_ms = 150;
  config.frame_timeout_ms = 150;
  const ServerRunner server(config);
  WireClient bystander = server.Join("bystander");

  WireClient silent = server.Connect();
  WireClient half = server.Join("half");
  half.SendRaw(RawFrame("abc", 100, 0));
  // A byte now and then does not wind up the clock.
  WireClient dripping = server.Join("dripping");
  dripping.SendRaw(RawFrame("", 1000, 0));
  const auto start = steady_clock::now();
  std::string drip_end = "still open";
  for (int i = 0; i < 40 && drip_end == "still open"; ++i) {
    dripping.SendRaw("x");
    drip_end = dripping.ReadGoodbye(milliseconds(30));
  }
  CHECK(steady_clock::now() - start < std::chrono::seconds(1));
  CHECK(drip_end.find("--frame-timeout-ms") != std::string::npos);
  CHECK(silent.ReadGoodbye().find("--hello-timeout-ms") != std::string::npos);
  CHECK(half.ReadGoodbye().find("--frame-timeout-ms") != std::string::npos);
  CHECK(Answers(bystander));
}

TEST_CASE("kvmd: observers may read, and are refused every change", "[unit]") {
  const ServerRunner server;
  WireClient worker = server.Join("worker");
  KVM_REQUIRE_OK(worker.DeclareModel(LlamaSpec()));
  WireClient observer = server.Join("observer", kvmwire::OBSERVER);
  WireRegion region("pool", LlamaSpec(), 4);
  KVM_CHECK_ERROR(region.Register(observer), Errc::kPermissionDenied, "observers");
  KVM_CHECK_ERROR(observer.DeclareModel(LlamaSpec()), Errc::kPermissionDenied, "observers");
  KVM_CHECK_ERROR(region.Publish(observer, {region.Write(0, {1, 2})}), Errc::kPermissionDenied, "observers");
  CHECK(observer.QueryStatus().has_value());
  CHECK(Answers(observer));
}

TEST_CASE("kvmd: a connection above the limit is told so, and there is room once another one ends", "[unit]") {
  daemon::Config config;
  config.max_clients = 3;
  const ServerRunner server(config);
  WireClient first = server.Join("1"), second = server.Join("2"), third = server.Join("3");
  WireClient fourth = server.Connect();
  CHECK(fourth.ReadGoodbye().find("--max-clients") != std::string::npos);
  second.Close();
  CHECK(Eventually([&] { return server.Connect().Hello().has_value(); }));
  Result<kvmwire::StatusReply> status = first.QueryStatus();
  KVM_REQUIRE_OK(status);
  CHECK(status->rejected_connections() >= 1);
}

TEST_CASE("kvmd: two thousand quick connects leave no client and no descriptor", "[unit]") {
  daemon::Config config;
  config.max_clients_per_user = 40;
  const ServerRunner server(config);
  WireClient bystander = server.Join("bystander");
  const Result<kvmwire::StatusReply> before = bystander.QueryStatus();
  KVM_REQUIRE_OK(before);
  for (int i = 0; i < 2000; ++i) {
    WireClient client = server.Connect();
    if (i % 3 == 0) client.SendRaw(Framed(HelloBytes()));
    if (i % 3 == 1) client.SendRaw("garbage!");
  }
  CHECK(Eventually([&] { return bystander.QueryStatus()->clients() == 1; }));
  // Descriptors of this process include the test's own, of which there are as many as before.
  CHECK(Eventually([&] { return bystander.QueryStatus()->open_fds() <= before->open_fds() + 1; }));
  // Nor a place of those that a user may have. Of the quick ones most have ended before kvmd takes
  // them, and have none; each of these has one.
  for (int i = 0; i < 45; ++i) {
    server.Join("after").Close();
    REQUIRE(Eventually([&] { return bystander.QueryStatus()->clients() == 1; }));
  }
}

TEST_CASE("kvmd: a client that sends and does not read is not read any more, and others are served", "[unit]") {
  const ServerRunner server;
  WireClient bystander = server.Join("bystander");
  std::vector<WireClient> crowd;
  for (int i = 0; i < 50; ++i) crowd.push_back(server.Join(std::string(60, 'n')));
  WireClient deaf = server.Join("deaf");
  kvmwire::ClientMessage query;
  query.mutable_status_query()->set_clients(true);
  const std::string payload = query.SerializeAsString();
  const std::string frame = Framed(payload);
  std::string frames;
  for (int i = 0; i < 1000; ++i) frames += frame;
  // Sends until kvmd takes no more.
  timeval timeout{0, 300'000};
  REQUIRE(::setsockopt(deaf.fd(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) == 0);
  std::size_t sent = 0;
  for (ssize_t took = 0; sent < (std::size_t{16} << 20) && (took = deaf.SendRaw(frames)) > 0;) sent += static_cast<std::size_t>(took);
  CHECK(sent < (std::size_t{16} << 20));
  Result<kvmwire::StatusReply> status = bystander.QueryStatus();
  KVM_REQUIRE_OK(status);
  std::uint64_t queued = 0;
  for (const kvmwire::ClientStatus& client : status->client_list()) {
    if (client.name() == "deaf") queued = client.queued_bytes();
  }
  CHECK(queued > 0);
  CHECK(queued < (std::size_t{2} << 20));
}

TEST_CASE("kvmd: announcements are queued by name for a client that does not read them, and the client stays connected", "[unit]") {
  daemon::Config config;
  config.max_queue_bytes = 100'000;
  const ServerRunner server(config);
  WireClient deaf = server.Join("deaf", kvmwire::WORKER, false);
  KVM_REQUIRE_OK(deaf.DeclareModel(LlamaSpec()));
  WireClient bystander = server.Join("bystander");
  WireRegion region("pool", LlamaSpec(), 2000);
  // A long description, so that it does not take many.
  region.descriptor.clear_parts();
  for (std::uint32_t i = 0; i < 64; ++i) {
    kvmwire::GeometryPart& part = *region.descriptor.add_parts();
    part.set_offset(i);
    part.set_chunk_bytes(1);
    part.set_block_stride(64);
    part.set_count(1);
  }
  for (int round = 0; round < 400; ++round) {
    WireClient worker = server.Join("worker");
    KVM_REQUIRE_OK(worker.DeclareModel(LlamaSpec()));
    KVM_REQUIRE_OK(region.Register(worker));
  }
  CHECK(Answers(deaf));
  CHECK(Answers(bystander));
}

TEST_CASE("kvmd: stopping sends a goodbye to all clients, closes the registry and removes the socket", "[unit]") {
  auto server = std::make_unique<ServerRunner>();
  const std::string path = server->socket_path();
  WireClient worker = server->Connect();
  Result<Received> hello = worker.Hello();
  KVM_REQUIRE_OK(hello);
  REQUIRE(hello->fds.size() == 1);
  Result<MappedMemory> memory = MappedMemory::Attach(hello->fds[0].get());
  KVM_REQUIRE_OK(memory);
  Result<RegistryView> registry = RegistryView::Open(std::move(*memory));
  KVM_REQUIRE_OK(registry);
  CHECK(registry->state() == layout::SegmentState::kLive);
  WireClient observer = server->Join("observer", kvmwire::OBSERVER);
  CHECK(server->Stop());
  CHECK(worker.ReadGoodbye().find("shutting down") != std::string::npos);
  CHECK(observer.ReadGoodbye().find("shutting down") != std::string::npos);
  CHECK(registry->state() == layout::SegmentState::kClosed);
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("kvmd: a server that stops with clients and regions leaks no descriptor", "[unit]") {
  const int before = OpenFds();
  for (int round = 0; round < 3; ++round) {
    ServerRunner server;
    WireClient worker = server.Join("worker"), importer = server.Join("importer");
    KVM_REQUIRE_OK(worker.DeclareModel(LlamaSpec()));
    KVM_REQUIRE_OK(importer.DeclareModel(LlamaSpec()));
    WireRegion region("pool", LlamaSpec(), 4);
    KVM_REQUIRE_OK(region.Register(worker));
    kvmwire::ClientMessage unregister = region.UnregisterMessage(10'000);
    unregister.set_request_id(1);
    KVM_REQUIRE_OK(worker.Send(unregister));  // waits for the importer
    server.Destroy();
  }
  CHECK(Eventually([&] { return OpenFds() <= before; }));  // threads of its own close some
}

TEST_CASE("kvmd: when its process dies a client is removed, though another process keeps its connection open", "[unit]") {
  // The child connects, gives the connection to this process and waits to be killed.
  const ServerRunner server;
  WireClient bystander = server.Join("bystander");
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  const std::string path = server.socket_path();
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    Result<WireClient> client = WireClient::Connect(path);
    if (!client) ::_exit(1);
    SendRaw(theirs.get(), "x", {client->fd()});
    ::pause();
    ::_exit(0);
  }
  theirs.Reset();
  char byte = 0;
  iovec vector{&byte, 1};
  msghdr message{};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  REQUIRE(::recvmsg(ours.get(), &message, MSG_CMSG_CLOEXEC) == 1);
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(fd));
  WireClient held{UniqueFd(fd)};
  KVM_REQUIRE_OK(held.Hello("held"));
  KVM_REQUIRE_OK(held.DeclareModel(LlamaSpec()));
  WireRegion region("pool", LlamaSpec(), 4);
  KVM_REQUIRE_OK(region.Register(held));
  CHECK(bystander.QueryStatus()->clients() == 2);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(Eventually([&] {
    const Result<kvmwire::StatusReply> status = bystander.QueryStatus();
    return status && status->clients() == 1 && status->domains(0).regions() == 0;
  }));
}

TEST_CASE("kvmd: domains are made as users connect, and at the limit an idle one is dropped", "[unit]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to connect as other users");
  daemon::Config config;
  config.max_domains = 2;
  const ServerRunner server(config);
  WireClient first = server.ConnectAs(1001), second = server.ConnectAs(1002);
  Result<Received> hello = first.Hello();
  KVM_REQUIRE_OK(hello);
  CHECK(hello->message.hello_reply().domain() == "uid-1001");
  KVM_REQUIRE_OK(second.Hello());
  WireClient third = server.ConnectAs(1003);
  KVM_CHECK_ERROR(third.Hello(), Errc::kResourceExhausted, "--max-domains");
  first.Close();
  CHECK(Eventually([&] { return server.ConnectAs(1003).Hello().has_value(); }));
  // What others have is not theirs to see.
  CHECK(second.QueryStatus()->domains_size() == 1);
  CHECK(second.QueryStatus()->client_list_size() == 1);
}

}  // namespace
}  // namespace kvm::test
