// The summary of a node's keys against the exact set, over snapshots, deltas and lies.
#include <vector>

#include "client/mesh/directory/node_summary.h"
#include "client/mesh/directory/peer_summary.h"
#include "tests/catch.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;
using mesh::CuckooFilter;
using mesh::KeySet;
using mesh::NodeSummary;
using mesh::PeerSummary;
using mesh::SummaryImage;

std::vector<BlockKey> SomeKeys(std::size_t count, std::uint64_t seed) {
  test::Random random(seed);
  std::vector<BlockKey> keys(count);
  for (BlockKey& key : keys) key = {random.Next(), random.Next()};
  return keys;
}

KeySet AsSet(const std::vector<BlockKey>& keys) { return {keys.begin(), keys.end()}; }

// Whether `summary` contains each of `keys`: a depth of 1 for each alone.
std::size_t Missing(const PeerSummary& summary, const KeySet& keys) {
  std::size_t missing = 0;
  for (const BlockKey& key : keys) missing += summary.MatchedDepth(std::span(&key, 1), 0) == 0;
  return missing;
}

}  // namespace

TEST_CASE("Cuckoo filter: it contains every key that was added and not removed, after many of both", "[unit]") {
  CuckooFilter filter(CuckooFilter::BucketsFor(5000));
  std::vector<BlockKey> keys = SomeKeys(5000, 1);
  std::vector<std::uint32_t> changed;
  for (const BlockKey& key : keys) REQUIRE(filter.Add(key, changed));
  for (std::size_t i = 0; i < keys.size(); i += 2) filter.Remove(keys[i], changed);
  const std::vector<BlockKey> more = SomeKeys(2500, 2);
  for (const BlockKey& key : more) REQUIRE(filter.Add(key, changed));
  std::size_t missing = 0;
  for (std::size_t i = 1; i < keys.size(); i += 2) missing += !filter.Contains(keys[i]);
  for (const BlockKey& key : more) missing += !filter.Contains(key);
  CHECK(missing == 0);
}

TEST_CASE("Cuckoo filter: keys that were never added are contained less often than one in a thousand", "[unit]") {
  CuckooFilter filter(CuckooFilter::BucketsFor(20'000));
  std::vector<std::uint32_t> changed;
  for (const BlockKey& key : SomeKeys(20'000, 3)) REQUIRE(filter.Add(key, changed));
  std::size_t contained = 0;
  for (const BlockKey& key : SomeKeys(100'000, 4)) contained += filter.Contains(key);
  CHECK(contained < 100);
}

TEST_CASE("Cuckoo filter: it is empty again once every key has been removed", "[unit]") {
  CuckooFilter filter(CuckooFilter::BucketsFor(3000));
  std::vector<std::uint32_t> changed;
  const std::vector<BlockKey> keys = SomeKeys(3000, 5);
  for (const BlockKey& key : keys) REQUIRE(filter.Add(key, changed));
  for (const BlockKey& key : keys) filter.Remove(key, changed);
  CHECK(std::vector<std::uint64_t>(filter.buckets().size(), 0) == std::vector(filter.buckets().begin(), filter.buckets().end()));
}

TEST_CASE("Summary: a peer that takes snapshots and deltas at random times never lacks a key", "[unit]") {
  test::Random random(6);
  NodeSummary node;
  PeerSummary peer;
  std::vector<BlockKey> pool = SomeKeys(4000, 7);
  std::size_t deltas = 0, snapshots = 0, missing = 0;
  for (int round = 0; round < 300; ++round) {
    KeySet keys;
    const std::size_t most = 1 + random.Below(3000);
    const std::size_t from = random.Below(pool.size());
    for (std::size_t i = 0; i < most; ++i) keys.insert(pool[(from + i) % pool.size()]);
    // Small changes now and then, so that there are deltas.
    if (round % 3 != 0) {
      keys = AsSet(pool);
      for (std::uint64_t i = 0; i < random.Below(20); ++i) keys.erase(pool[random.Below(pool.size())]);
    }
    node.Update(keys);
    if (random.Below(4) == 0) continue;
    const SummaryImage image = node.Answer(peer.epoch(), peer.sequence());
    ++(image.snapshot ? snapshots : deltas);
    KVM_REQUIRE_OK(peer.Apply(image));
    missing += Missing(peer, keys);
  }
  CHECK(missing == 0);
  CHECK(deltas > 20);
  CHECK(snapshots > 0);
}

TEST_CASE("Summary: changes one by one leave what an update with all keys leaves, and a peer never lacks a key", "[unit]") {
  test::Random random(16);
  NodeSummary node;
  PeerSummary peer;
  const std::vector<BlockKey> pool = SomeKeys(4000, 17);
  KeySet keys;
  std::size_t deltas = 0, missing = 0;
  for (int round = 0; round < 400; ++round) {
    if (round % 97 == 96) {
      node.Clear();
      keys.clear();
    }
    std::vector<mesh::KeyChange> changes;
    for (std::uint64_t i = 0; i < random.Below(round % 5 == 0 ? 1000 : 8); ++i) {
      const mesh::KeyChange change{pool[random.Below(pool.size())], random.Below(3) != 0};
      changes.push_back(change);
      if (change.here)
        keys.insert(change.key);
      else
        keys.erase(change.key);
    }
    node.Change(changes);
    REQUIRE(node.keys() == keys.size());
    if (random.Below(3) == 0) continue;
    const SummaryImage image = node.Answer(peer.epoch(), peer.sequence());
    deltas += image.snapshot ? 0 : 1;
    KVM_REQUIRE_OK(peer.Apply(image));
    missing += Missing(peer, keys);
  }
  CHECK(missing == 0);
  CHECK(deltas > 50);
  // What has been removed is not contained any more, but for chance.
  std::vector<mesh::KeyChange> none;
  for (const BlockKey& key : pool) none.push_back({key, false});
  node.Change(none);
  KVM_REQUIRE_OK(peer.Apply(node.Answer(peer.epoch(), peer.sequence())));
  CHECK(Missing(peer, AsSet(pool)) == pool.size());
}

TEST_CASE("Summary: as many keys that come as leave do not build the filter anew, however full it is", "[unit]") {
  const std::vector<BlockKey> keys = SomeKeys(20'000, 19);
  NodeSummary node;
  // The most that a filter of this size takes without growing.
  const std::uint64_t buckets = 1024;
  std::size_t most = 0;
  while (CuckooFilter::BucketsFor(most + 1) <= buckets) ++most;
  node.Update(AsSet({keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(most)}));
  const std::uint64_t epoch = node.Answer(0, 0).epoch;
  for (std::size_t first = 0; first + most + 100 <= keys.size(); first += 100) {
    std::vector<mesh::KeyChange> changes;
    for (std::size_t i = 0; i < 100; ++i) changes.push_back({keys[first + i], false});
    for (std::size_t i = 0; i < 100; ++i) changes.push_back({keys[first + most + i], true});
    node.Change(changes);
  }
  CHECK(node.keys() == most);
  const SummaryImage image = node.Answer(0, 0);
  CHECK(image.epoch == epoch);
  CHECK(image.buckets == buckets);
}

TEST_CASE("Directory: a prefix reaches as far as memory and disk of a node have its blocks between them", "[unit]") {
  const std::vector<BlockKey> prefix = SomeKeys(256, 18);
  const auto summary = [&](std::size_t first, std::size_t last) {
    NodeSummary node;
    node.Update(AsSet({prefix.begin() + static_cast<std::ptrdiff_t>(first), prefix.begin() + static_cast<std::ptrdiff_t>(last)}));
    PeerSummary out;
    KVM_REQUIRE_OK(out.Apply(node.Answer(0, 0)));
    return out;
  };
  const auto match = [&](const PeerSummary& memory, const PeerSummary& disk, std::size_t known) {
    const mesh::MatchedDepths depths = mesh::MatchBoth(memory, disk, prefix, known);
    return std::pair(depths.memory, depths.all);
  };
  CHECK(match(summary(0, 100), PeerSummary(), 0) == std::pair<std::size_t, std::size_t>(100, 100));
  CHECK(match(PeerSummary(), summary(0, 100), 0) == std::pair<std::size_t, std::size_t>(0, 100));
  // The rest, or what lies before and after.
  CHECK(match(summary(0, 100), summary(100, 200), 0) == std::pair<std::size_t, std::size_t>(100, 200));
  CHECK(match(summary(0, 100), summary(0, 256), 7) == std::pair<std::size_t, std::size_t>(100, 256));
  CHECK(match(summary(50, 200), summary(0, 60), 0) == std::pair<std::size_t, std::size_t>(0, 200));
  // What lacks the next block of the prefix brings nothing, whatever comes behind that block.
  CHECK(match(summary(50, 200), PeerSummary(), 0) == std::pair<std::size_t, std::size_t>(0, 0));
  CHECK(match(PeerSummary(), summary(50, 200), 40) == std::pair<std::size_t, std::size_t>(40, 40));
  CHECK(match(summary(0, 200), summary(0, 60), 100) == std::pair<std::size_t, std::size_t>(200, 200));
}

TEST_CASE("Summary: a delta leaves the peer with the same filter as a snapshot would", "[unit]") {
  NodeSummary node;
  const std::vector<BlockKey> keys = SomeKeys(2000, 8);
  node.Update(AsSet({keys.begin(), keys.begin() + 1990}));
  PeerSummary by_delta, by_snapshot;
  KVM_REQUIRE_OK(by_delta.Apply(node.Answer(0, 0)));
  node.Update(AsSet({keys.begin() + 5, keys.end()}));
  const SummaryImage delta = node.Answer(by_delta.epoch(), by_delta.sequence());
  REQUIRE_FALSE(delta.snapshot);
  KVM_REQUIRE_OK(by_delta.Apply(delta));
  KVM_REQUIRE_OK(by_snapshot.Apply(node.Answer(0, 0)));
  std::size_t different = 0;
  for (const BlockKey& key : keys)
    different += by_delta.MatchedDepth(std::span(&key, 1), 0) != by_snapshot.MatchedDepth(std::span(&key, 1), 0);
  CHECK(different == 0);
}

TEST_CASE("Summary: a delta of another epoch, or of one that was missed, is refused as stale", "[unit]") {
  NodeSummary node, other;
  node.Update(AsSet(SomeKeys(100, 9)));
  other.Update(AsSet(SomeKeys(100, 10)));
  PeerSummary peer;
  KVM_REQUIRE_OK(peer.Apply(node.Answer(0, 0)));
  SummaryImage foreign = other.Answer(0, 0);
  foreign.snapshot = false;
  foreign.payload.clear();
  KVM_CHECK_ERROR(peer.Apply(foreign), Errc::kStale, "another summary");
  CHECK(peer.epoch() == node.Answer(0, 0).epoch);
}

TEST_CASE("Summary: a peer far behind, or with an unknown epoch, is sent the whole filter", "[unit]") {
  NodeSummary node;
  std::vector<BlockKey> keys = SomeKeys(300, 11);
  node.Update(AsSet(keys));
  const SummaryImage first = node.Answer(0, 0);
  CHECK(first.snapshot);
  CHECK(node.Answer(first.epoch + 2, first.sequence).snapshot);
  CHECK(node.Answer(first.epoch, first.sequence + 1).snapshot);
  for (int update = 0; update < 100; ++update) {
    keys.pop_back();
    node.Update(AsSet(keys));
  }
  CHECK(node.Answer(first.epoch, first.sequence).snapshot);
}

TEST_CASE("Summary: lengths that contradict each other are refused and change nothing", "[unit]") {
  NodeSummary node;
  const std::vector<BlockKey> keys = SomeKeys(50, 12);
  node.Update(AsSet(keys));
  PeerSummary peer;
  const SummaryImage good = node.Answer(0, 0);
  KVM_REQUIRE_OK(peer.Apply(good));
  SummaryImage bad = good;
  bad.payload.pop_back();
  KVM_CHECK_ERROR(peer.Apply(bad), Errc::kProtocol, "buckets in");
  bad = good;
  bad.buckets = 0;
  bad.payload.clear();
  KVM_CHECK_ERROR(peer.Apply(bad), Errc::kProtocol, "0 buckets");
  bad = good;
  bad.buckets = std::uint64_t{1} << 61;  // times 8 is 0 in 64 bits
  bad.payload.clear();
  KVM_CHECK_ERROR(peer.Apply(bad), Errc::kProtocol, "buckets in");
  bad = good;
  bad.buckets = 3;
  bad.payload.resize(24);
  KVM_CHECK_ERROR(peer.Apply(bad), Errc::kProtocol, "3 buckets");
  bad = good;
  bad.snapshot = false;
  bad.payload.assign(12, '\xff');  // a bucket far outside
  KVM_CHECK_ERROR(peer.Apply(bad), Errc::kProtocol, "bucket that there is not");
  bad.payload.assign(13, '\0');
  KVM_CHECK_ERROR(peer.Apply(bad), Errc::kProtocol, "half a bucket");
  CHECK(Missing(peer, AsSet(keys)) == 0);
}

TEST_CASE("Directory: the matched depth of a prefix is exact where the peer has all blocks before its last", "[unit]") {
  const std::vector<BlockKey> prefix = SomeKeys(512, 13);
  std::size_t wrong = 0;
  for (std::size_t has = 0; has <= prefix.size(); ++has) {
    NodeSummary node;
    node.Update(AsSet({prefix.begin(), prefix.begin() + static_cast<std::ptrdiff_t>(has)}));
    PeerSummary peer;
    KVM_REQUIRE_OK(peer.Apply(node.Answer(0, 0)));
    for (const std::size_t known : {std::size_t{0}, has / 2, has}) wrong += peer.MatchedDepth(prefix, known) != has;
  }
  // A second depth has to agree, so a false one takes two false positives.
  CHECK(wrong == 0);
}

TEST_CASE("Directory: a peer without a summary matches nothing", "[unit]") {
  const std::vector<BlockKey> prefix = SomeKeys(8, 14);
  CHECK(PeerSummary().MatchedDepth(prefix, 3) == 3);
}

TEST_CASE("Node summary: keys that no size has room for cost neither memory nor the hits of other keys", "[unit]") {
  const std::vector<BlockKey> ordinary = SomeKeys(1000, 21);
  KeySet keys = AsSet(ordinary);
  NodeSummary summary;
  summary.Update(keys);
  const std::uint64_t before = summary.Answer(0, 0).buckets;
  // One fingerprint, two buckets.
  for (std::uint64_t i = 0; i < 100; ++i) keys.insert({7, std::uint64_t{0xABCD} << 48 | i});
  summary.Update(keys);
  const SummaryImage image = summary.Answer(0, 0);
  CHECK(image.buckets <= 4 * before);
  PeerSummary peer;
  REQUIRE(peer.Apply(image));
  CHECK(Missing(peer, keys) == 0);
}

TEST_CASE("Mesh summary: peers that are sent the same share its bytes, and those of other versions do not", "[unit]") {
  NodeSummary node;
  node.Update(AsSet(SomeKeys(1000, 1)));
  const std::shared_ptr<const SummaryImage> whole = node.Share(0, 0);
  CHECK(whole->payload == node.Answer(0, 0).payload);
  CHECK(node.Share(1, 7) == whole);
  node.Update(AsSet(SomeKeys(1000, 2)));
  CHECK(node.Share(0, 0) != whole);
  const std::shared_ptr<const SummaryImage> delta = node.Share(whole->epoch, whole->sequence);
  CHECK(delta->payload == node.Answer(whole->epoch, whole->sequence).payload);
  CHECK(node.Share(whole->epoch, whole->sequence) == delta);
  CHECK(node.Share(0, 0) != delta);
  const std::weak_ptr<const SummaryImage> kept = node.Share(0, 0);
  CHECK(kept.expired());
}
