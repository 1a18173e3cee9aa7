// What one user's connections can do to the others: not take all of them, not fill the log.
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/socket_pair.h"

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
