#include "client/mesh/log/wire_log.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <new>
#include <optional>
#include <string>

#include "client/mesh/log/event_log.h"
#include "client/mesh/log/line_limit.h"
#include "proto/base/unique_fd.h"
#include "proto/log/log_sink.h"
#include "proto/mesh/mesh.pb.h"
#include "proto/wire/wire_log.h"
#include "tests/catch.h"

namespace {

using kvm::UniqueFd;

// What `act` writes to stderr.
template <class Act>
std::string Stderr(const Act& act) {
  const UniqueFd file(::memfd_create("stderr", MFD_CLOEXEC)), before(::dup(STDERR_FILENO));
  REQUIRE(file);
  REQUIRE(before);
  std::cerr << std::flush;
  std::fflush(stderr);
  REQUIRE(::dup2(file.get(), STDERR_FILENO) == STDERR_FILENO);
  act();
  CHECK(kvm::ProcessLog().Drain(std::chrono::seconds(60)));
  std::cerr << std::flush;
  std::fflush(stderr);
  REQUIRE(::dup2(before.get(), STDERR_FILENO) == STDERR_FILENO);
  std::string said(static_cast<std::size_t>(::lseek(file.get(), 0, SEEK_END)), '\0');
  REQUIRE(::pread(file.get(), said.data(), said.size(), 0) == static_cast<ssize_t>(said.size()));
  return said;
}

}  // namespace

// Seen to fail without RouteWireLog: 1,000 lines of libprotobuf's.
TEST_CASE("Mesh wire log: names that are not UTF-8 cost one line", "[unit]") {
  kvm::RouteWireLog(&kvm::mesh::LogWireMessage);
  // A peer's hello: field 2, `node`, of two bytes that are not UTF-8.
  const std::string bytes("\x12\x02\xff\xfe", 4);
  const std::string said = Stderr([&] {
    for (int i = 0; i < 1000; ++i) {
      kvmmesh::Hello hello;
      static_cast<void>(hello.ParseFromString(bytes));
    }
  });
  INFO(said.substr(0, 400));
  CHECK(std::count(said.begin(), said.end(), '\n') <= 1);
  if (!said.empty()) CHECK(said.starts_with("event=wire_message "));
}

TEST_CASE("Mesh log: one line in each pause, with the number of those that were left out", "[unit]") {
  using namespace std::chrono_literals;
  kvm::mesh::LineLimit limit(10s);
  const kvm::mesh::LineLimit::Clock::time_point start(1h);
  CHECK(limit.Take(start) == std::optional<std::uint64_t>(0));
  CHECK(limit.Take(start + 1s) == std::nullopt);
  CHECK(limit.Take(start + 9'999ms) == std::nullopt);
  CHECK(limit.Take(start + 10s) == std::optional<std::uint64_t>(2));
  CHECK(limit.Take(start + 30s) == std::optional<std::uint64_t>(0));
}

TEST_CASE("Mesh log: a lack of memory is one event", "[unit]") {
  CHECK(Stderr([] { kvm::mesh::LogException("handler_failed", std::bad_alloc()); }) == "event=handler_failed reason=std::bad_alloc\n");
}
