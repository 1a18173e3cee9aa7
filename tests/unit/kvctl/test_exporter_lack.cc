// What kvctl exporter does when memory is short: one allocation fails, wherever it is made, and the
// requests that follow are answered.
#include <sys/socket.h>
#include <sys/un.h>

#include <string>

#include "client/kvctl/exporter/http_server.h"
#include "tests/catch.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/failing_allocation.h"
#include "tests/support/process/lacking_process.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {
namespace {

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  return address;
}

UniqueFd Listen(const std::string& path) {
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = AddressOf(path);
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  REQUIRE(::listen(socket.get(), 16) == 0);
  return socket;
}

// Whether a request is answered; false as well if its connection ends.
bool Answers(const std::string& path) {
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address = AddressOf(path);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) return false;
  const timeval patience{5, 0};
  ::setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  const std::string request = "GET /metrics HTTP/1.1\r\nHost: kvmd\r\nConnection: close\r\n\r\n";
  if (::send(socket.get(), request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) return false;
  std::string all;
  char text[4096];
  for (ssize_t got = 0; (got = ::recv(socket.get(), text, sizeof(text), 0)) > 0;) all.append(text, static_cast<std::size_t>(got));
  return all.find("a page") != std::string::npos;
}

}  // namespace

// Where the end of HttpServer's coroutine that accepts is not noticed, no later request is
// answered.
TEST_CASE("Exporter lack of memory: whichever allocation fails, the requests that follow are answered", "[unit]") {
  if (kSanitized) KVM_SKIP("sanitizers have allocators of their own");
  int failures = 0;
  for (long at = 0;; ++at) {
    INFO("allocation " << at);
    const TempDir directory;
    const std::string path = directory / "exporter.sock";
    UniqueFd listening = Listen(path);
    LackingProcess exporter([&](bool* failed) {
      std::vector<UniqueFd> sockets;
      sockets.push_back(std::move(listening));
      bool first = true;
      ctl::HttpServer server(
          std::move(sockets),
          [&](std::string_view, bool) {
            ctl::HttpContent page{"text/plain", std::string(100, ' ') + "a page"};
            if (std::exchange(first, false)) FailAllocation(at, failed);
            return page;
          },
          [](std::string_view, bool) { return true; });
      server.Run();
    });
    listening.Reset();
    static_cast<void>(Answers(path));
    for (int i = 0; i < 3; ++i) static_cast<void>(Answers(path));
    CHECK(Eventually([&] { return Answers(path); }));
    REQUIRE_FALSE(exporter.Ended());
    if (!exporter.failed()) break;
    ++failures;
  }
  CHECK(failures > 10);  // or the case shows nothing
}

}  // namespace kvm::test
