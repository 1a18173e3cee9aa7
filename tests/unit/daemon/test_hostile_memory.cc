// Memory whose last descriptor kvmd has: its close frees all of it, which takes 50 ms a GiB, so
// kvmd's thread closes none. The thread that does (descriptor_closer.h) stands still here, so that
// whatever kvmd's thread closed itself is seen.
//
// Each case fails where PeerFd::Reset closes at once; of the last one, the first section where
// OrphanService::Freeing is false: seen.
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "daemon/broker/state/state_store.h"
#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/slow_manager.h"
#include "tests/support/process/held_closer.h"

namespace kvm::test {
namespace {

constexpr std::uint32_t kBlocks = 4;
constexpr std::uint64_t kBlockBytes = std::uint64_t{1} << 20;

// The payload's pages are there, as if its owner had written them.
WireRegion LargeRegion(const std::string& name) { return WireRegion(name, LlamaSpec(), kBlocks, kBlockBytes); }

WireRegion LargeGranted(Node& node, ClientId client, FakeConnection& connection, const std::string& name) {
  WireRegion region = node.Granted(client, connection, name, kBlocks, kBlockBytes);
  std::memset(region.payload.data(), 1, region.payload.size());
  return region;
}

// Ends the test's own use of a region, whose payload kvmd may then have alone.
FileId LetGo(std::optional<WireRegion>& region) {
  const FileId payload = FileIdOf(region->payload.fd());
  region.reset();
  return payload;
}

}  // namespace

TEST_CASE("Hostile: the memory of a region that ends is not freed by kvmd's thread", "[unit]") {
  DescriptorCloser closer;
  Node node({}, nullptr, nullptr, &closer);
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  std::optional<WireRegion> region;
  kvmwire::ClientMessage unregister;
  SECTION("its owner takes it away") {
    region = LargeRegion("pool");
    node.Register(client, connection, *region);
    unregister = region->UnregisterMessage();
  }
  SECTION("its owner's connection ends") {
    region = LargeRegion("pool");
    node.Register(client, connection, *region);
  }
  SECTION("granted, and its owner's connection ends") {
    region = LargeGranted(node, client, connection, "pool");
    region->descriptor.set_outlives_owner(false);
    node.Register(client, connection, *region);
  }
  HeldCloser held(closer, Node::kDefaultUser);
  const FileId payload = LetGo(region);
  const int kept = DescriptorsOf(payload);
  REQUIRE(kept > 0);
  if (unregister.has_unregister_region()) {
    node.Handle(client, unregister);
  } else {
    node.broker.Leave(client, true);
  }
  node.WorkAll();
  REQUIRE(node.Domain().regions() == 0);
  node.broker.Tick(std::chrono::steady_clock::now());
  CHECK(DescriptorsOf(payload) > 0);
  held.Release();
  CHECK(Eventually([&] {
    node.broker.Tick(std::chrono::steady_clock::now());  // looks at memory that was granted
    return DescriptorsOf(payload) == 0;
  }));
}

TEST_CASE("Hostile: the memory of a message that kvmd refuses is not freed by kvmd's thread", "[unit]") {
  DescriptorCloser closer;
  Node node({}, nullptr, nullptr, &closer);
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  std::optional<WireRegion> region = LargeRegion("pool");
  kvmwire::ClientMessage message = region->RegisterMessage();
  std::vector<int> fds = region->fds();
  SECTION("before it is looked at") { message.mutable_register_region()->mutable_region()->set_name(std::string(1 << 20, 'n')); }
  SECTION("since it does not fit its description") { fds.push_back(fds.back()); }
  SECTION("after its memory was mapped") { message.mutable_register_region()->mutable_region()->set_fingerprint("another"); }
  SECTION("since its name is taken") {
    WireRegion other("pool", LlamaSpec(), kBlocks);
    node.Register(client, connection, other);
  }
  HeldCloser held(closer, Node::kDefaultUser);
  node.Handle(client, message, fds);
  CHECK(connection.TakeError() != "no error");
  const FileId payload = LetGo(region);
  CHECK(DescriptorsOf(payload) > 0);
  held.Release();
  CHECK(Eventually([&] { return DescriptorsOf(payload) == 0; }));
}

TEST_CASE("Hostile: the memory of a stored region that ends is not freed by kvmd's thread", "[unit]") {
  DescriptorCloser closer;
  SlowManager manager(&closer);
  Node node({}, manager.store.get(), nullptr, &closer);
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  std::optional<WireRegion> region = LargeRegion("pool");
  node.Register(client, connection, *region);
  const FileId payload = LetGo(region);
  HeldCloser held(closer, Node::kDefaultUser);
  node.broker.Leave(client, true);
  node.WorkAll();
  REQUIRE(node.Domain().regions() == 0);
  CHECK(DescriptorsOf(payload) == 2);  // the region's, and the store's
  held.Release();
  CHECK(Eventually([&] { return DescriptorsOf(payload) == 0; }));
}

// Who reclaims wants the memory. The deadline is the caller's, and holds.
TEST_CASE("Hostile: a reclaim is answered when the memory is free, or its time is over", "[unit]") {
  DescriptorCloser closer;
  Node node({}, nullptr, nullptr, &closer);
  FakeConnection owner_peer, asking_peer;
  const ClientId owner = node.Join(owner_peer);
  std::optional<WireRegion> region = LargeGranted(node, owner, owner_peer, "pool");
  node.Register(owner, owner_peer, *region);
  const FileId payload = LetGo(region);
  node.broker.Leave(owner, true);
  REQUIRE(node.Domain().orphans() == 1);
  const ClientId asking = node.Join(asking_peer, 2, Node::kDefaultUser, kvmwire::OBSERVER);
  HeldCloser held(closer, Node::kDefaultUser);
  kvmwire::ClientMessage request;
  request.set_request_id(1);
  request.mutable_reclaim()->set_ack_timeout_ms(60'000);
  node.Handle(asking, request);
  node.WorkAll();
  REQUIRE(node.Domain().orphans() == 0);
  CHECK_FALSE(asking_peer.Has(Body::kReclaimReply));
  SECTION("freed") {
    held.Release();
    CHECK(Eventually([&] {
      node.WorkAll();
      return asking_peer.Has(Body::kReclaimReply);
    }));
    CHECK(DescriptorsOf(payload) == 0);
  }
  SECTION("its time is over") {
    node.broker.Tick(std::chrono::steady_clock::now() + std::chrono::seconds(61));
    CHECK(asking_peer.Has(Body::kReclaimReply));
  }
}

}  // namespace kvm::test
