// Memory that a thread frees.
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "daemon/server/memory_freer_thread.h"
#include "tests/catch.h"
#include "tests/support/kvmd/server_runner.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/threads.h"

namespace kvm::test {
namespace {

using namespace std::chrono_literals;

bool IsMapped(const std::string& name) {
  std::ifstream maps("/proc/self/maps");
  return std::string(std::istreambuf_iterator<char>(maps), {}).find("memfd:" + name) != std::string::npos;
}

}  // namespace

// Counted: the thread sleeps until it is given something. Where Server hands no freer to its
// broker, the registry is freed as well, and the thread goes on sleeping: seen.
TEST_CASE("Memory freer: a kvmd that drops a domain for another one has the thread free its registry", "[unit]") {
  if (::geteuid() != 0) KVM_SKIP("needs root, to connect as other users");
  daemon::Config config;
  config.max_domains = 1;
  const ServerRunner server(config);
  WireClient first = server.ConnectAs(1001);
  KVM_REQUIRE_OK(first.Hello());
  REQUIRE(IsMapped("kvmd:uid-1001"));
  const auto freer = [] { return ThreadsNamed(daemon::MemoryFreerThread::kName); };
  REQUIRE(Eventually([&] { return freer().size() == 1 && freer()[0].asleep; }, 60s));
  const std::uint64_t waits = freer()[0].waits;
  first.Close();
  REQUIRE(Eventually([&] { return server.ConnectAs(1002).Hello().has_value(); }, 60s));
  CHECK(Eventually([&] { return !IsMapped("kvmd:uid-1001"); }, 60s));
  CHECK(Eventually([&] { return freer()[0].waits > waits; }, 60s));
}

TEST_CASE("Memory freer: an object is destroyed in the thread, and none is left at its end", "[unit]") {
  struct Object {
    explicit Object(std::atomic<pid_t>& its_end) : end(its_end) {}
    Object(const Object&) = delete;
    Object& operator=(const Object&) = delete;
    ~Object() { end = ::gettid(); }
    std::atomic<pid_t>& end;
  };
  std::atomic<pid_t> first = 0, last = 0;
  {
    daemon::MemoryFreerThread freer;
    freer.Destroy(std::make_shared<Object>(first), 1);
    REQUIRE(Eventually([&] { return !freer.freeing(); }, 60s));
    CHECK(first != 0);
    CHECK(first != ::gettid());
    freer.Destroy(std::make_shared<Object>(last), 1);
  }
  CHECK(last != 0);
}

TEST_CASE("Memory freer: what the thread says is free is not mapped any more, and all is free at its end", "[unit]") {
  const std::size_t sizes[] = {1, std::size_t{40} << 20};  // more than is unmapped at once
  {
    daemon::MemoryFreerThread freer;
    CHECK_FALSE(freer.freeing());
    for (const std::size_t size : sizes) {
      Result<OwnedMemory> memory = OwnedMemory::Create("kvm:test:freed", size);
      KVM_REQUIRE_OK(memory);
      REQUIRE(IsMapped("kvm:test:freed"));
      freer.Free(std::move(*memory));
      REQUIRE(Eventually([&] { return !freer.freeing(); }, 60s));
      CHECK_FALSE(IsMapped("kvm:test:freed"));
    }
    for (const std::size_t size : sizes) {
      Result<OwnedMemory> memory = OwnedMemory::Create("kvm:test:last", size);
      KVM_REQUIRE_OK(memory);
      freer.Free(std::move(*memory));
    }
  }
  CHECK_FALSE(IsMapped("kvm:test:last"));
}

}  // namespace kvm::test
