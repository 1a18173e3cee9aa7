// Which prefixes kvmd takes for hot: counts of imports that clients report, bounded, and fading.
#include "daemon/registry/hot_prefixes.h"
#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"

namespace kvm::test {
namespace {

using daemon::HotPrefixes;
using namespace std::chrono_literals;

const std::chrono::steady_clock::time_point kStart{100h};

// The domain's answer to a query for that many prefixes.
kvmwire::DomainStatus Hot(Node& node, std::uint32_t most) {
  FakeConnection connection;
  const ClientId id = node.Join(connection, 1, 1000, kvmwire::OBSERVER);
  kvmwire::ClientMessage query;
  query.mutable_status_query()->set_hot(most);
  node.Handle(id, query);
  kvmwire::DomainStatus out = connection.Take(Body::kStatusReply).message.status_reply().domains(0);
  node.broker.Leave(id, false);
  return out;
}

void AddImport(kvmwire::ClientMessage& message, const WireRegion& region, std::uint32_t block, std::uint32_t blocks,
               std::uint32_t later_epochs = 0) {
  kvmwire::HostCacheRun& import = *message.mutable_host_cache_use()->add_imports();
  import.set_region(region.row);
  import.set_region_epoch(region.region_epoch + later_epochs);
  import.set_slot(block);
  import.set_blocks(blocks);
}

}  // namespace

TEST_CASE("Hot prefixes: the most used come first, with their uses and blocks", "[unit]") {
  HotPrefixes hot;
  hot.Note({1, 1}, 7, "org/a", 8, kStart);
  for (int i = 0; i < 3; ++i) hot.Note({2, 2}, 3, "org/b", 2, kStart);
  const auto listed = hot.List(10, kStart);
  REQUIRE(listed.size() == 2);
  CHECK(listed[0].key == BlockKey{2, 2});
  CHECK(listed[0].uses == 3);
  CHECK(listed[0].blocks == 6);
  CHECK(listed[0].model_id == "org/b");
  CHECK(listed[1].depth == 7);
  CHECK(hot.List(1, kStart).size() == 1);
}

TEST_CASE("Hot prefixes: however many are reported, the used ones stay and the memory is bounded", "[unit]") {
  HotPrefixes hot;
  for (int i = 0; i < 5; ++i) hot.Note({1, 1}, 0, "m", 1, kStart);
  for (std::uint64_t i = 0; i < 10 * HotPrefixes::kMost; ++i) hot.Note({100 + i, 0}, 0, "m", 1, kStart);
  CHECK(hot.size() == HotPrefixes::kMost);
  CHECK(hot.List(1, kStart).at(0).key == BlockKey{1, 1});
}

TEST_CASE("Hot prefixes: uses fade, and what is not used any more is forgotten", "[unit]") {
  HotPrefixes hot;
  for (int i = 0; i < 8; ++i) hot.Note({1, 1}, 0, "m", 1, kStart);
  hot.Note({2, 2}, 0, "m", 1, kStart);
  CHECK(hot.List(10, kStart + daemon::kHotHalfLife - 1s).size() == 2);
  const auto later = hot.List(10, kStart + daemon::kHotHalfLife);
  REQUIRE(later.size() == 1);
  CHECK(later[0].uses == 4);
  CHECK(hot.List(10, kStart + 100 * daemon::kHotHalfLife).empty());
}

TEST_CASE("Hot prefixes: imports that clients report are listed under their keys, also without a host cache", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  WireRegion region = node.Granted(client, connection, "pool", 4);
  node.Register(client, connection, region);
  node.Publish(client, connection, region, 9);
  kvmwire::ClientMessage use;
  for (int i = 0; i < 3; ++i) AddImport(use, region, 2, 0xFFFFFFFF);
  AddImport(use, region, 1, 1);
  AddImport(use, region, 4, 1);  // beyond the region
  AddImport(use, region, 0xFFFFFFFF, 1);
  AddImport(use, region, 2, 1, 1);  // another region of that row
  node.Handle(client, use);
  const kvmwire::DomainStatus status = Hot(node, 10);
  REQUIRE(status.hot_size() == 2);
  CHECK(status.hot(0).uses() == 3);
  // No import has more blocks than its prefix.
  CHECK(status.hot(0).blocks() == 3 * (status.hot(0).depth() + 1));
  CHECK(status.hot(0).model_id() == LlamaSpec().model_id);
  const BlockKey key{2, 9};
  CHECK(status.hot(0).key() == std::string(reinterpret_cast<const char*>(&key), sizeof(key)));
  CHECK(Hot(node, 1).hot_size() == 1);
  CHECK(node.Domain().hot_size() == 0);  // not asked for
}

TEST_CASE("Hot prefixes: a report of more imports than a message may have ends the connection", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  kvmwire::ClientMessage use;
  for (std::size_t i = 0; i <= kMaxHostCacheRuns; ++i) use.mutable_host_cache_use()->add_imports();
  const Status refused = node.broker.Handle(client, use, {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::kProtocol);
}

}  // namespace kvm::test
