// How many connections kvmd takes, of all and of one user, and what those of one user may leave
// waiting.
#include "daemon/server/connection_quota.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>

#include "daemon/server/acceptor.h"
#include "daemon/server/listener.h"
#include "daemon/system/process_info.h"
#include "proto/base/socket_peer.h"
#include "tests/catch.h"
#include "tests/support/kvmd/server_runner.h"
#include "tests/support/process/socket_pair.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::daemon {
namespace {

using test::ServerRunner;
using test::WireClient;

TEST_CASE("kvmd connections: a user has a quota, all users together another, and closed connections leave both", "[unit]") {
  Config config;
  config.max_clients = 5;
  config.max_clients_per_user = 2;
  ConnectionQuota quota(config);
  KVM_REQUIRE_OK(quota.Add(1000));
  KVM_REQUIRE_OK(quota.Add(1000));
  KVM_CHECK_ERROR(quota.Add(1000), Errc::kResourceExhausted, "too many clients of user 1000: the limit is 2 (--max-clients-per-user)");
  KVM_REQUIRE_OK(quota.Add(1001));
  KVM_REQUIRE_OK(quota.Add(1001));
  KVM_REQUIRE_OK(quota.Add(0));
  CHECK(quota.total() == 5);
  KVM_CHECK_ERROR(quota.Add(1002), Errc::kResourceExhausted, "too many clients: the limit is 5 (--max-clients)");
  quota.Remove(1000);
  KVM_REQUIRE_OK(quota.Add(1000));
  KVM_CHECK_ERROR(quota.Add(1000), Errc::kResourceExhausted, "--max-clients");
  quota.Remove(1002);  // has none
  CHECK(quota.total() == 5);
}

TEST_CASE("kvmd connections: without a quota of its own a user has a quarter, at least 64", "[unit]") {
  Config config;
  CHECK(ConnectionQuota(config).per_user() == 256);
  config.max_clients = 100;
  CHECK(ConnectionQuota(config).per_user() == 64);
  config.max_clients_per_user = 7;
  CHECK(ConnectionQuota(config).per_user() == 7);
}

// The end of a connection that may wait in the queue of `path` to be accepted.
UniqueFd ConnectTo(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  REQUIRE(::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  return socket;
}

// Counted, not timed. Where AcceptSome takes all that waits, the first check fails: seen. Where it
// keeps connections that have ended, the last one: seen.
TEST_CASE("kvmd: of many that connect and drop, some are taken at a time, and none costs more than that", "[unit]") {
  constexpr std::size_t kDropped = 2 * Acceptor::kAtOnce + 10;
  const test::TempDir dir;
  Result<Listener> listener = Listener::Open(dir / "s", "0600");
  KVM_REQUIRE_OK(listener);
  const UniqueFd socket = listener->TakeSocket();
  for (std::size_t i = 0; i < kDropped; ++i) ConnectTo(dir / "s").Reset();
  const UniqueFd lasting = ConnectTo(dir / "s");
  std::vector<UniqueFd> taken;
  DescriptorCloser closer;
  Acceptor acceptor([&](UniqueFd one) { taken.push_back(std::move(one)); }, closer);
  for (const std::size_t expected : {Acceptor::kAtOnce, Acceptor::kAtOnce, kDropped + 1 - 2 * Acceptor::kAtOnce, std::size_t{0}}) {
    const Result<std::size_t> accepted = acceptor.AcceptSome(socket.get());
    KVM_REQUIRE_OK(accepted);
    CHECK(*accepted == expected);
  }
  REQUIRE(taken.size() == 1);
  CHECK(::send(lasting.get(), "x", 1, MSG_NOSIGNAL) == 1);
  char byte = 0;
  CHECK(::read(taken[0].get(), &byte, 1) == 1);
}

TEST_CASE("kvmd: a connection above the user's limit is told the option, and there is room once another one ends", "[unit]") {
  Config config;
  config.max_clients_per_user = 2;
  const ServerRunner server(config);
  WireClient first = server.Join("1"), second = server.Join("2");
  CHECK(server.Connect().ReadGoodbye().find("--max-clients-per-user") != std::string::npos);
  CHECK(first.QueryStatus().has_value());
  second.Close();
  CHECK(test::Eventually([&] { return server.Connect().Hello().has_value(); }));
  const Result<kvmwire::StatusReply> status = first.QueryStatus();
  KVM_REQUIRE_OK(status);
  CHECK(status->rejected_connections() >= 1);
}

// What kvmd says to a process of user and group `id` that connects; only system calls behind the
// fork.
std::string SaidToUser(const std::string& socket_path, unsigned id) {
  int said[2];
  REQUIRE(::pipe2(said, O_CLOEXEC) == 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    char text[1024];
    if (::syscall(SYS_setgid, id) != 0 || ::syscall(SYS_setuid, id) != 0) ::_exit(1);
    const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) ::_exit(1);
    ssize_t got = 0;
    while ((got = ::read(socket, text, sizeof(text))) > 0 && ::write(said[1], text, static_cast<std::size_t>(got)) > 0) continue;
    ::_exit(0);
  }
  ::close(said[1]);
  std::string all;
  char text[1024];
  for (ssize_t got = 0; (got = ::read(said[0], text, sizeof(text))) > 0;) all.append(text, static_cast<std::size_t>(got));
  ::close(said[0]);
  ::waitpid(child, nullptr, 0);
  return all;
}

TEST_CASE("kvmd: the user that stands for all without a number is refused with the reason, another one is not", "[unit]") {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const UniqueFd one(ends[0]), other(ends[1]);
  const Result<ucred> peer = PeerOf(one.get());
  KVM_REQUIRE_OK(peer);
  const std::uint32_t user = ::geteuid(), group = ::getegid();
  const Status refused = daemon::CheckUser(*peer, false, {user, std::nullopt});
  KVM_CHECK_ERROR(refused, Errc::kPermissionDenied, "user " + std::to_string(user));
  KVM_CHECK_ERROR(refused, Errc::kPermissionDenied, "user namespace");
  KVM_REQUIRE_OK(daemon::CheckUser(*peer, false, {user + 1, group}));
  KVM_CHECK_ERROR(daemon::CheckUser(*peer, true, {user + 1, group}), Errc::kPermissionDenied, "group " + std::to_string(group));
  KVM_REQUIRE_OK(daemon::CheckUser(*peer, true, {}));
}

TEST_CASE("kvmd: where every user has a number, that of `nobody` is one like the others", "[unit]") {
  if (::geteuid() != 0) KVM_SKIP("only root can connect as another user");
  if (daemon::NamelessIds::OfThisNamespace().user) KVM_SKIP("this is a user namespace");
  Config config;
  config.hello_timeout_ms = 100;  // one that is let in says nothing
  const ServerRunner server(config);
  std::filesystem::permissions(std::filesystem::path(server.socket_path()).parent_path(), std::filesystem::perms(0755));
  CHECK(SaidToUser(server.socket_path(), 65'534).find("user namespace") == std::string::npos);
  CHECK(server.Connect().Hello().has_value());
}

TEST_CASE("kvmd: what a user's connections leave unread together has a limit, and those who read go on", "[unit]") {
  Config config;
  config.max_queue_bytes_per_user = 2 << 20;
  const ServerRunner server(config);
  std::vector<WireClient> greedy;
  for (int i = 0; i < 14; ++i) greedy.push_back(server.Join("greedy-" + std::to_string(i)));
  WireClient bystander = server.Join("bystander");
  kvmwire::ClientMessage query;
  query.set_request_id(1);
  query.mutable_status_query()->set_clients(true);
  const std::string payload = query.SerializeAsString();
  std::string queries;
  for (int i = 0; i < 1500; ++i) queries += test::RawFrame(payload, static_cast<std::uint32_t>(payload.size()), 0);
  for (WireClient& client : greedy) client.SendRaw(queries);
  CHECK(test::Eventually([&] {
    const Result<kvmwire::StatusReply> status = bystander.QueryStatus();
    return status && status->clients() < 15;
  }));
  const Result<kvmwire::StatusReply> status = bystander.QueryStatus();
  KVM_REQUIRE_OK(status);
  std::uint64_t waiting = 0;
  for (const kvmwire::ClientStatus& client : status->client_list()) waiting += client.queued_bytes();
  CHECK(waiting <= config.max_queue_bytes_per_user);
  CHECK(status->clients() > 1);  // only as many go as must
}

}  // namespace
}  // namespace kvm::daemon
