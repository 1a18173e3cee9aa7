// kvmd in this process: a server on a socket in a directory of its own, run by a thread.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>

#include "daemon/server/server.h"
#include "tests/catch.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {

class ServerRunner {
 public:
  explicit ServerRunner(daemon::Config config = {}) {
    config.socket_path = socket_path();
    config.max_entries = std::min<std::uint64_t>(config.max_entries, 20'000);  // small segments
    config.log_level = std::getenv("KVM_TEST_LOG") != nullptr ? daemon::LogLevel::kDebug : daemon::LogLevel::kError;
    auto server = daemon::Server::Create(config);
    KVM_REQUIRE_OK(server);
    server_ = std::move(*server);
    thread_ = std::thread([this] { status_ok_ = server_->Run().has_value(); });
  }
  ~ServerRunner() { Stop(); }

  // Whether Run ended without an error.
  bool Stop() {
    if (thread_.joinable()) {
      server_->Stop();
      thread_.join();
    }
    return status_ok_;
  }
  void Destroy() {
    Stop();
    server_.reset();
  }

  std::string socket_path() const { return directory_ / "kvmd.sock"; }

  WireClient Connect() const {
    Result<WireClient> client = WireClient::Connect(socket_path());
    KVM_REQUIRE_OK(client);
    return std::move(*client);
  }
  // The same by another user. Needs root. Credentials are taken when connecting; the calling thread
  // alone changes its user for that moment. Makes the socket's directory one that all may enter.
  WireClient ConnectAs(uid_t uid) const {
    std::filesystem::permissions(directory_.path(), std::filesystem::perms::all);
    REQUIRE(BecomeUser(uid));
    Result<WireClient> client = WireClient::Connect(socket_path());
    REQUIRE(BecomeUser(0));
    KVM_REQUIRE_OK(client);
    return std::move(*client);
  }
  // Connected and greeted.
  WireClient Join(const std::string& name = "test", kvmwire::Role role = kvmwire::WORKER, bool wants_payload = true) const {
    WireClient client = Connect();
    KVM_REQUIRE_OK(client.Hello(name, role, wants_payload));
    return client;
  }

 private:
  // By the system call itself: seteuid would have all threads do the same, kvmd's among them.
  static bool BecomeUser(uid_t uid) { return ::syscall(SYS_setresuid, -1, uid, -1) == 0; }

  TempDir directory_;
  std::unique_ptr<daemon::Server> server_;
  std::thread thread_;
  bool status_ok_ = false;
};

}  // namespace kvm::test
