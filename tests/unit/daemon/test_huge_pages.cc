// Huge pages that the kernel makes late: kvmd's thread does not wait for it.
#include <sys/mman.h>

#include <algorithm>
#include <thread>

#include <boost/asio/executor_work_guard.hpp>

#include "daemon/server/huge_page_thread.h"
#include "proto/shm/sealed_memory.h"
#include "tests/support/broker/offloading_worker.h"
#include "tests/support/kvmd/server_runner.h"
#include "tests/support/process/threads.h"

namespace kvm::test {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kLargeBlock = std::uint64_t{5} << 20;
constexpr std::uint64_t kLargeSlab = kSlots * kLargeBlock;

// Makes no page until the test says so.
class LateMaker final : public daemon::HugePageMaker {
 public:
  void Make(int, std::uint64_t offset, std::uint64_t bytes, Done done) override {
    CHECK(offset % daemon::kHugePageBytes == 0);
    waiting.push_back([bytes, done = std::move(done)] { done(bytes); });
  }
  void MakeAll() {
    for (const auto& make : std::exchange(waiting, {})) make();
  }
  std::vector<std::function<void()>> waiting;
};

Config LargeCache() {
  Config config = CacheOf(1);
  config.host_cache_bytes = config.host_cache_slab_bytes = kLargeSlab;
  return config;
}

TEST_CASE("Huge pages: a slab is granted once its pages have been made, and kvmd serves others meanwhile", "[unit]") {
  LateMaker maker;
  Node node(LargeCache(), nullptr, &maker);
  OffloadingWorker writer(node, "writer", 1000, 8, kLargeBlock), other(node, "other", 1000, 8, kLargeBlock);
  node.WorkAll();
  maker.MakeAll();  // of the registry
  node.WorkAll();
  maker.waiting.clear();
  writer.Send(writer.Write(0, 2));
  for (const std::size_t parts : {8, 2}) {
    node.WorkAll();  // ends: there is nothing to do but wait
    REQUIRE(maker.waiting.size() == parts);
    CHECK_FALSE(writer.connection.Has(Body::kPrepareStoreReply));
    other.connection.sent.clear();
    kvmwire::ClientMessage ping;
    ping.mutable_ping();
    node.Handle(other.id, ping);
    CHECK(other.connection.sent.size() == 1);
    maker.MakeAll();
    node.WorkAll();
  }
  CHECK(writer.connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply().grants_size() == 2);
  CHECK(node.Status().host_cache().transparent_bytes() == kLargeSlab);
}

TEST_CASE("Huge pages: a slab whose writer leaves before its pages are made keeps no other writer from one", "[unit]") {
  LateMaker maker;
  Config config = LargeCache();
  config.host_cache_bytes = 2 * kLargeSlab;
  Node node(config, nullptr, &maker);
  {
    OffloadingWorker writer(node, "writer", 1000, 8, kLargeBlock);
    writer.Send(writer.Write(0, 2));
    node.WorkAll();
    REQUIRE_FALSE(maker.waiting.empty());
    node.broker.Leave(writer.id, /*died=*/true);
  }
  OffloadingWorker next(node, "next", 1000, 8, kLargeBlock);
  next.Send(next.Write(0, 2));
  for (int part = 0; part < 10; ++part) {
    node.WorkAll();
    maker.MakeAll();
  }
  node.WorkAll();
  CHECK(next.connection.Has(Body::kSlabGrant));
}

// The registry's segment is sealed before its pages are moved. (Where each move mapped the memory
// writable, none of a sealed segment succeeded, and publishing cost twice the time.)
TEST_CASE("Huge pages: a sealed segment is moved like granted memory", "[unit]") {
  constexpr std::uint64_t kBytes = 4 * daemon::kHugePageBytes;
  Result<UniqueFd> granted = CreateGrantable("kvm:test", kBytes);
  KVM_REQUIRE_OK(granted);
  REQUIRE(::posix_fallocate(granted->get(), 0, kBytes) == 0);
  if (daemon::MoveToHugePages(granted->get(), 0, kBytes) == 0) {
    WARN("SKIPPED: this kernel makes no huge pages");
    return;
  }
  Result<OwnedMemory> sealed = OwnedMemory::Create("kvm:test", kBytes, HugePages::kLater);
  KVM_REQUIRE_OK(sealed);
  CHECK(daemon::MoveToHugePages(sealed->fd(), 0, kBytes) == kBytes);
}

TEST_CASE("Huge pages: a thread makes them, and says so on the loop's thread", "[unit]") {
  boost::asio::io_context context;
  int made = 0;
  daemon::HugePageThread thread(context, [&] { ++made; });
  Result<OwnedMemory> memory = OwnedMemory::Create("huge", 2 * daemon::kHugePageBytes);
  KVM_REQUIRE_OK(memory);
  std::fill_n(memory->data(), memory->size(), std::byte{7});
  int done = 0;
  const auto work = boost::asio::make_work_guard(context);
  for (std::uint64_t part = 0; part < 2; ++part) {
    thread.Make(memory->fd(), part * daemon::kHugePageBytes, daemon::kHugePageBytes,
                [&, caller = std::this_thread::get_id()](std::uint64_t bytes) {
                  CHECK(std::this_thread::get_id() == caller);
                  CHECK((bytes == 0 || bytes == daemon::kHugePageBytes));
                  CHECK(made == done);
                  ++done;
                });
  }
  while (made < 2) context.run_one();
  CHECK(done == 2);
  CHECK(std::count(memory->data(), memory->data() + memory->size(), std::byte{7}) == static_cast<std::ptrdiff_t>(memory->size()));
}

// Counted: the thread sleeps until it is given something. Where Server hands no maker to its
// broker, the thread goes on sleeping: seen.
TEST_CASE("Huge pages: a kvmd has the thread make those of a new domain's registry", "[unit]") {
  const ServerRunner server;
  const auto maker = [] { return ThreadsNamed(daemon::HugePageThread::kName); };
  REQUIRE(Eventually([&] { return maker().size() == 1 && maker()[0].asleep; }, 60s));
  const std::uint64_t waits = maker()[0].waits;
  server.Join();
  CHECK(Eventually([&] { return maker()[0].waits > waits; }, 60s));
}

TEST_CASE("Huge pages: nothing is said after the end of the thread that makes them", "[unit]") {
  boost::asio::io_context context;
  int said = 0;
  Result<OwnedMemory> memory = OwnedMemory::Create("huge", daemon::kHugePageBytes);
  KVM_REQUIRE_OK(memory);
  {
    daemon::HugePageThread thread(context, [&] { ++said; });
    for (int i = 0; i < 8; ++i) thread.Make(memory->fd(), 0, daemon::kHugePageBytes, [&](std::uint64_t) { ++said; });
  }
  context.run();
  CHECK(said == 0);
}

}  // namespace
}  // namespace kvm::test
