// What one user's connections can do to the others: not take all of them, not fill the log.
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "kvclient/client.h"
#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/socket_pair.h"
#include "tests/support/process/temp_dir.h"

namespace {

using namespace kvm;
using test::Eventually;
using test::KvmdProcess;
using test::WireClient;

WireClient Connect(const KvmdProcess& kvmd) {
  Result<WireClient> client = WireClient::Connect(kvmd.socket());
  KVM_REQUIRE_OK(client);
  return std::move(*client);
}

// Connects as another user and says hello; whether kvmd answers. By the system call itself, which
// changes one thread only.
bool AnsweredAs(uid_t uid, const KvmdProcess& kvmd) {
  bool answered = false;
  std::thread([&] {
    if (::syscall(SYS_setresuid, -1, uid, -1) != 0) return;
    Result<WireClient> client = WireClient::Connect(kvmd.socket());
    answered = client && client->Hello().has_value();
  }).join();
  return answered;
}

// What kvmd tells a process of another user whose first message breaks the protocol, or that it
// does not let in.
std::string GoodbyeAs(uid_t uid, const KvmdProcess& kvmd) {
  std::string said = "not connected";
  std::thread([&] {
    if (::syscall(SYS_setresuid, -1, uid, -1) != 0) return;
    Result<WireClient> client = WireClient::Connect(kvmd.socket());
    if (!client) return;
    client->SendRaw("this is no frame of kvmd's");
    said = client->ReadGoodbye();
  }).join();
  return said;
}

// A hello whose name is not UTF-8, as no protobuf library would send it.
std::string HelloWithBadName() {
  kvmwire::ClientMessage message;
  message.mutable_hello()->set_protocol_version(kProtocolVersion);
  message.mutable_hello()->set_client_name("Z");
  std::string bytes = message.SerializeAsString();
  bytes[bytes.find('Z')] = '\xff';
  return bytes;
}

}  // namespace

TEST_CASE("Connections: one user's connections can't use up those of another user", "[integration]") {
  KvmdProcess kvmd({"--max-clients", "10", "--max-clients-per-user", "3"});
  std::vector<WireClient> clients;
  // The connection that KvmdProcess waited with may still count.
  REQUIRE(Eventually([&] {
    clients.push_back(Connect(kvmd));
    if (!clients.back().Hello()) clients.pop_back();
    return clients.size() == 3;
  }));
  CHECK(Connect(kvmd).ReadGoodbye().find("the limit is 3 (--max-clients-per-user)") != std::string::npos);
  CHECK(kvmd.Log().find("event=connection_refused uid=" + std::to_string(::geteuid())) != std::string::npos);
  for (WireClient& client : clients) CHECK(client.QueryStatus().has_value());
  if (::geteuid() != 0) KVM_SKIP("only root can connect as another user");
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  CHECK(AnsweredAs(12345, kvmd));
}

TEST_CASE("Connections: strings that are not UTF-8 do not fill kvmd's log", "[integration]") {
  KvmdProcess kvmd;
  const std::string hello = HelloWithBadName();
  for (int i = 0; i < 500; ++i) {
    WireClient client = Connect(kvmd);
    client.SendRaw(test::RawFrame(hello, static_cast<std::uint32_t>(hello.size()), 0));
    CHECK(client.ReadGoodbye() != "still open");
  }
  KVM_REQUIRE_OK(Connect(kvmd).Hello());
  // All lines are kvmd's own, which are limited.
  std::istringstream log(kvmd.Log());
  for (std::string line; std::getline(log, line);) {
    INFO(line);
    CHECK(line.starts_with("event="));
  }
  CHECK(kvmd.Log().find("event=client_dropped") != std::string::npos);
}

// Without CheckUser in Server::Impl::Take all users that the namespace has no number for share a
// domain: seen.
TEST_CASE("Connections: a kvmd in a user namespace refuses users that it has no number for, and serves its own", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("only root can connect as another user");
  const std::vector<std::string> unshare{"/usr/bin/unshare", "--user", "--map-root-user"};
  test::ChildProcess probe({unshare[0], unshare[1], unshare[2], "/bin/true"});
  if (const auto end = probe.Wait(std::chrono::seconds(10)); !end || !end->clean()) KVM_SKIP("user namespaces can't be made here");
  KvmdProcess kvmd({}, unshare);
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  REQUIRE(::chmod(kvmd.socket().c_str(), 0666) == 0);
  for (const uid_t uid : {12'345u, 12'346u}) CHECK(GoodbyeAs(uid, kvmd).find("user namespace") != std::string::npos);
  CHECK(Connect(kvmd).Hello().has_value());
}

// Without limits in LogLimited all 400 lines are written, and where a limit is one of all users
// together the other user's line is not: both seen.
TEST_CASE("Connections: one user's flood of refusals fills no log and keeps no other user's line out of it", "[integration]") {
  if (::geteuid() != 0) KVM_SKIP("only root can connect as another user");
  KvmdProcess kvmd({"--max-log-lines-per-user", "1"});
  REQUIRE(::chmod(kvmd.dir().path().c_str(), 0755) == 0);
  for (int i = 0; i < 400; ++i) {
    WireClient client = Connect(kvmd);
    client.SendRaw("this is no frame of kvmd's");
    CHECK(client.ReadGoodbye() != "still open");
  }
  CHECK(GoodbyeAs(12'345, kvmd) != "not connected");
  REQUIRE(Eventually([&] { return kvmd.Log().find("uid=12345 ") != std::string::npos; }));
  std::istringstream log(kvmd.Log());
  int lines = 0;
  for (std::string line; std::getline(log, line);)
    lines += line.starts_with("event=client_dropped") && line.find(" uid=0 ") != std::string::npos;
  CHECK(lines >= 1);
  CHECK(lines < 200);  // ten at once, and one a second
}

// Where an eviction's two lines are written without a limit there are 800: seen.
TEST_CASE("Connections: an admin's flood of evictions fills no log", "[integration]") {
  KvmdProcess kvmd({"--max-log-lines-per-user", "1", "--host-cache", "16M", "--max-entries", "1000"});
  WireClient client = Connect(kvmd);
  KVM_REQUIRE_OK(client.Hello("admin", kvmwire::OBSERVER));
  kvmwire::ClientMessage evict;
  evict.mutable_evict();
  for (int i = 0; i < 400; ++i) KVM_REQUIRE_OK(client.Call(evict));
  REQUIRE(Eventually([&] { return kvmd.Log().find("event=host_cache_evicted") != std::string::npos; }));
  std::istringstream log(kvmd.Log());
  int lines = 0;
  for (std::string line; std::getline(log, line);) lines += line.starts_with("event=host_cache_evict");
  CHECK(lines < 200);  // ten at once, and one a second
}

// Where connect()'s EAGAIN is taken for an absent kvmd, the next try comes after the pause of a
// reconnect, and no hello: seen.
TEST_CASE("Connections: a client waits while the queue of kvmd's socket is full", "[integration]") {
  const test::TempDir dir;
  const std::string path = dir / "kvmd.sock";
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const auto* const at = reinterpret_cast<const sockaddr*>(&address);
  REQUIRE(::bind(listener.get(), at, sizeof(address)) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  std::vector<UniqueFd> waiting;
  for (bool full = false; !full;) {
    UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    full = ::connect(socket.get(), at, sizeof(address)) != 0;
    if (full) REQUIRE(errno == EAGAIN);
    waiting.push_back(std::move(socket));
  }
  ClientOptions options;
  options.socket_path = path;
  options.timeout = std::chrono::seconds(20);
  options.reconnect_min = options.reconnect_max = std::chrono::seconds(60);
  std::atomic<bool> ended{false};
  std::thread client([&] {
    static_cast<void>(Client::Connect(options));
    ended = true;
  });
  test::SleepMs(200);
  CHECK_FALSE(ended);
  // There is room: its hello comes.
  for (std::size_t i = 1; i < waiting.size(); ++i) UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  bool hello = false;
  if (pollfd socket{listener.get(), POLLIN, 0}; !ended && ::poll(&socket, 1, 10'000) == 1) {
    const UniqueFd theirs(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    char byte = 0;
    hello = ::recv(theirs.get(), &byte, 1, 0) == 1;
  }
  CHECK(hello);
  ::shutdown(listener.get(), SHUT_RDWR);
  client.join();
}
