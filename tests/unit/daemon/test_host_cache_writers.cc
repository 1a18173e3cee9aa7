// Writers of the host cache whose connections end: who may write their slabs then.
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

constexpr std::uint64_t kInstance = 77;

kvmwire::HostCacheDomain Status(Node& node) { return node.Domain(1000).host_cache(); }

void LetTimePass(Node& node) {
  // Importers that do not answer are not waited for.
  for (int i = 0; i < 2; ++i) {
    node.broker.Tick(std::chrono::steady_clock::now() + seconds(2 * i));
    node.WorkAll();
  }
  node.broker.Tick(std::chrono::steady_clock::now() + seconds(2));
  node.WorkAll();
}

TEST_CASE("Host cache: a slab gets no other writer while the process that wrote it lives", "[unit]") {
  Node node(CacheOf(1));
  Sleeper process;
  OffloadingWorker living(node, "living", process, kInstance);
  CHECK(living.Offer(living.Write(0, kSlots)).grants_size() == kSlots);
  node.broker.Leave(living.id, /*died=*/false);  // its connection has ended, it has not
  node.WorkAll();
  OffloadingWorker adopter(node, "adopter");
  adopter.Send(adopter.Write(0, 4, 2));
  node.WorkAll();
  CHECK_FALSE(adopter.connection.Has(Body::kSlabGrant));
  process.Kill();
  LetTimePass(node);
  CHECK(adopter.connection.Has(Body::kSlabGrant));
  CHECK(adopter.connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply().grants_size() == 4);
}

TEST_CASE("Host cache: a client that reconnects keeps its slabs, and another client of its process does not get them", "[unit]") {
  Node node(CacheOf(2));
  Sleeper process;
  auto first = std::make_unique<OffloadingWorker>(node, "first", process, kInstance);
  REQUIRE(first->PrepareStore(first->Write(0, 4)) == 4);
  const kvmwire::PrepareStoreReply under_way = first->Offer(first->Write(4, 6, 2));
  REQUIRE(under_way.grants_size() == 2);
  node.broker.Leave(first->id, /*died=*/false);
  node.WorkAll();
  CHECK(Status(node).blocks() == 4);
  std::uint64_t instance = kInstance;
  bool same = true;
  std::unique_ptr<Sleeper> another;
  SECTION("the same client") {}
  SECTION("another client of that process") {
    instance = kInstance + 2;
    same = false;
  }
  SECTION("another process that says it is that client") {
    another = std::make_unique<Sleeper>();
    same = false;
  }
  SECTION("a client that has no name") {
    instance = 0;
    same = false;
  }
  OffloadingWorker next(node, "next", another ? *another : process, instance);
  // What it answers for, it was not granted on this connection.
  next.Done(under_way);
  CHECK(Status(node).blocks() == 4);
  CHECK(next.PrepareStore(next.Write(0, 2, 3)) == 2);
  CHECK(Status(node).blocks() == 6);
  // One that comes back goes on in its memory, any other has its own.
  CHECK(Status(node).slabs() == (same ? 1 : 2));
  // It also uses the slots that it has answered for.
  if (same) CHECK(next.PrepareStore(next.Write(2, 4, 3)) == 2);
  CHECK(next.connection.Has(Body::kSlabGrant));
  CHECK(Status(node).evicted() == 0);
}

}  // namespace
}  // namespace kvm::test
