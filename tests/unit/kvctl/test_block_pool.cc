// BlockPool: what stays by which policy, in which block, and that it hits what the simulator hits;
// and the content that blocks carry.
#include <algorithm>
#include <map>
#include <set>
#include <vector>

#include "client/kvctl/simulate/simulated_cache.h"
#include "client/kvctl/workload/block_content.h"
#include "client/kvctl/workload/block_pool.h"
#include "client/kvctl/workload/block_trace.h"
#include "client/kvctl/workload/request_source.h"
#include "client/kvctl/workload/workload.h"
#include "proto/base/random.h"
#include "tests/catch.h"
#include "tests/support/data/conversation_trace.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;
using policy::PolicyKind;
using Place = BlockPool::Place;

BlockKey Key(std::uint64_t n) { return {Mix(n + 1), Mix(n + 1000)}; }

std::vector<Place> Places(BlockPool& pool, const std::vector<std::uint64_t>& ids) {
  std::vector<BlockKey> keys;
  for (const std::uint64_t id : ids) keys.push_back(Key(id));
  const std::span<const Place> places = pool.Serve(keys);
  return {places.begin(), places.end()};
}
std::size_t Hits(BlockPool& pool, const std::vector<std::uint64_t>& ids) { return BlockPool::Hits(Places(pool, ids)); }

std::uint64_t PoolHits(const std::vector<Request>& requests, PolicyKind kind, std::uint32_t blocks) {
  BlockPool pool(kind, blocks);
  std::uint64_t hits = 0;
  for (const Request& request : requests) hits += Hits(pool, request.hash_ids);
  return hits;
}

std::uint64_t SimulatedHits(const BlockTrace& trace, PolicyKind kind, std::uint32_t capacity) {
  return SimulateCache(trace, *policy::MakePolicy(kind, capacity), capacity);
}

}  // namespace

TEST_CASE("BlockPool: with LRU, blocks are held until the pool is full, then the tail of the oldest request leaves", "[unit]") {
  BlockPool pool(PolicyKind::kLru, 6);
  CHECK(Hits(pool, {1, 2, 3}) == 0);
  CHECK(Hits(pool, {4, 5, 6}) == 0);
  CHECK(pool.evictions() == 0);
  CHECK(Hits(pool, {7}) == 0);
  CHECK(pool.evictions() == 1);
  CHECK(Hits(pool, {1, 2, 3}) == 2);  // 3 left first
}

TEST_CASE("BlockPool: with LRU, a block that is used again is not evicted next", "[unit]") {
  BlockPool pool(PolicyKind::kLru, 4);
  Hits(pool, {1, 2});
  Hits(pool, {3, 4});
  CHECK(Hits(pool, {1, 2}) == 2);
  Hits(pool, {5, 6});
  CHECK(Hits(pool, {1, 2}) == 2);
  CHECK(Hits(pool, {3, 4}) == 0);
}

TEST_CASE("BlockPool: a request longer than the pool keeps its first blocks, and reports those it does not keep", "[unit]") {
  BlockPool pool(PolicyKind::kLru, 3);
  const std::vector<Place> places = Places(pool, {1, 2, 3, 4, 5});
  CHECK(BlockPool::Hits(places) == 0);
  CHECK(pool.held() == 3);
  for (std::size_t i = 0; i < places.size(); ++i) CHECK((places[i].kept != BlockPool::kNoBlock) == (i < 3));
  CHECK(Hits(pool, {1, 2, 3, 4, 5}) == 3);
}

TEST_CASE("BlockPool: a key that leaves and comes back within one request keeps its block", "[unit]") {
  BlockPool pool(PolicyKind::kLru, 3);
  const std::vector<Place> first = Places(pool, {1, 2, 3});
  // Last to first: 4 takes the slot of 3, 3 that of 2, 2 that of 1, and 1 that of 4.
  const std::vector<Place> second = Places(pool, {1, 2, 3, 4});
  CHECK(BlockPool::Hits(second) == 3);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(second[i].held == first[i].kept);
    CHECK(second[i].kept == first[i].kept);
  }
  CHECK(second[3].kept == BlockPool::kNoBlock);
}

TEST_CASE("BlockPool: a gap ends the hit, and blocks behind it keep their places", "[unit]") {
  BlockPool pool(PolicyKind::kS3Fifo, 20);
  Hits(pool, {1, 2, 3});
  const std::vector<Place> places = Places(pool, {1, 9, 3});
  CHECK(BlockPool::Hits(places) == 1);
  CHECK(places[1].held == BlockPool::kNoBlock);
  CHECK(places[1].kept != BlockPool::kNoBlock);
  CHECK(places[2].held != BlockPool::kNoBlock);
  CHECK(places[2].kept == places[2].held);
}

TEST_CASE("BlockPool: over many random requests, a held block has its key, and no block gets two keys", "[unit]") {
  for (const PolicyKind kind : policy::kAllPolicies) {
    for (const std::uint32_t blocks : {1u, 7u, 50u}) {
      INFO(policy::PolicyName(kind) << ", " << blocks << " blocks");
      BlockPool pool(kind, blocks);
      SplitMix random(3);
      std::map<std::uint32_t, std::uint64_t> content;  // by block
      for (int round = 0; round < 5000; ++round) {
        // Prefixes share a stem of up to 3 blocks, then go their own way.
        const std::uint64_t path = random.Below(20), length = random.Between(1, 12);
        std::vector<std::uint64_t> ids;
        for (std::uint64_t i = 0; i < length; ++i) ids.push_back(i < path % 4 ? i : 100 * (path + 1) + i);
        const std::vector<Place> places = Places(pool, ids);
        REQUIRE(places.size() == ids.size());
        std::set<std::uint32_t> kept;
        for (std::size_t i = 0; i < ids.size(); ++i) {
          if (places[i].held != BlockPool::kNoBlock) REQUIRE(content.at(places[i].held) == ids[i]);
          if (places[i].kept == BlockPool::kNoBlock) continue;
          REQUIRE(places[i].kept < blocks);
          REQUIRE(kept.insert(places[i].kept).second);
          if (places[i].held != BlockPool::kNoBlock) REQUIRE(places[i].kept == places[i].held);
        }
        for (std::size_t i = 0; i < ids.size(); ++i) {
          if (places[i].kept != BlockPool::kNoBlock) content[places[i].kept] = ids[i];
        }
        REQUIRE(pool.held() == content.size());
      }
      CHECK(pool.evictions() > 0);
    }
  }
}

TEST_CASE("BlockPool: hits exactly what the simulator hits, by every policy and at every capacity", "[unit]") {
  for (const Workload workload : {Workload::kChat, Workload::kRag, Workload::kAgents}) {
    const std::vector<Request> requests = GenerateWorkload({workload, 5, 600, 512});
    const BlockTrace trace(requests);
    for (const std::uint32_t capacity : {1u, 2u, 13u, 100u, trace.distinct() / 10, trace.distinct() / 2, trace.distinct()}) {
      for (const PolicyKind kind : policy::kAllPolicies) {
        INFO(WorkloadName(workload) << ", " << policy::PolicyName(kind) << ", " << capacity << " blocks");
        CHECK(PoolHits(requests, kind, capacity) == SimulatedHits(trace, kind, capacity));
      }
    }
    // More than there is to hold.
    CHECK(PoolHits(requests, PolicyKind::kHitDensity, 2 * trace.distinct()) == trace.ReusedBlocks());
  }
}

TEST_CASE("BlockPool: hits exactly what the simulator hits on the conversation trace", "[unit]") {
  const std::string path = test::ConversationTrace();
  if (path.empty()) KVM_SKIP("no conversation trace: set KVM_TRACE");
  RequestSource source;
  source.trace = path;
  source.limit_requests = 3000;
  const Result<std::vector<Request>> requests = LoadRequests(source);
  KVM_REQUIRE_OK(requests);
  const BlockTrace trace(*requests);
  for (const PolicyKind kind : policy::kAllPolicies) {
    for (const std::uint32_t capacity : {457u, 1827u, 9139u}) {
      INFO(policy::PolicyName(kind) << ", " << capacity << " blocks");
      const std::uint64_t hits = PoolHits(*requests, kind, capacity);
      CHECK(hits > 0);
      CHECK(hits == SimulatedHits(trace, kind, capacity));
    }
  }
}

TEST_CASE("Block content: a block holds its own key and no other, and one changed byte shows", "[unit]") {
  std::vector<std::uint64_t> words(64);
  const std::span<std::byte> block = std::as_writable_bytes(std::span(words));
  FillBlock(Key(1), block);
  CHECK(BlockHolds(Key(1), block));
  CHECK_FALSE(BlockHolds(Key(2), block));
  CHECK_FALSE(BlockHolds({Key(1).lo, Key(2).hi}, block));
  block[509] ^= std::byte{1};
  CHECK_FALSE(BlockHolds(Key(1), block));
  block[509] ^= std::byte{1};
  std::rotate(words.begin(), words.begin() + 1, words.end());
  CHECK_FALSE(BlockHolds(Key(1), block));
}
