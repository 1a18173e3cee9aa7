// A service manager that the test hears when it wants to.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cstdlib>
#include <memory>
#include <set>
#include <sstream>
#include <string>

#include "daemon/broker/state/state_store.h"
#include "daemon/system/service_manager.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {

struct SlowManager {
  // `closer`, if any, outlives it.
  explicit SlowManager(DescriptorCloser* closer = nullptr) : socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    const std::string path = dir / "notify";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    ::setenv("NOTIFY_SOCKET", path.c_str(), 1);
    manager = daemon::ServiceManager::FromEnvironment();
    ::unsetenv("NOTIFY_SOCKET");
    store = std::make_unique<daemon::StateStore>(manager, closer);
  }
  // Names of what is stored by now.
  const std::set<std::string>& Hear() {
    const auto hear = [&] {
      char text[4096];
      for (ssize_t got = 0; (got = ::recv(socket.get(), text, sizeof(text), 0)) > 0;) {
        std::istringstream lines(std::string(text, static_cast<std::size_t>(got)));
        bool stores = false;
        for (std::string line; std::getline(lines, line);) {
          if (line.starts_with("FDSTORE")) stores = line == "FDSTORE=1";
          if (!line.starts_with("FDNAME=")) continue;
          stores ? void(stored.insert(line.substr(7))) : void(stored.erase(line.substr(7)));
        }
      }
    };
    hear();
    for (bool all = false; !all; hear()) all = manager.queue().Feed(64);
    return stored;
  }
  void StopListening(std::uint32_t user) {
    while (!manager.queue().full()) manager.queue().Send(user, "nothing");
  }

  TempDir dir;
  UniqueFd socket;
  daemon::ServiceManager manager;
  std::unique_ptr<daemon::StateStore> store;
  std::set<std::string> stored;
};

}  // namespace kvm::test
