// Keys of shards derived from names: appended in order, of each length, and not told from one
// another by a constant.
#include <algorithm>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "kvm/shard_keys.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

std::vector<BlockKey> Names(std::size_t count) {
  std::vector<BlockKey> names;
  for (std::size_t i = 0; i < count; ++i) names.push_back({i * 0x9e3779b97f4a7c15, i});
  return names;
}

ShardKeys Made(const Shard& shard) {
  Fingerprint fingerprint;
  fingerprint.bytes.fill(7);
  Result<ShardKeys> made = ShardKeys::Make(fingerprint, shard);
  KVM_REQUIRE_OK(made);
  return std::move(*made);
}

}  // namespace

TEST_CASE("Shard keys: a long run has the keys that its parts have", "[unit]") {
  ShardKeys keys = Made({});
  const std::vector<BlockKey> names = Names(10'000);
  std::vector<BlockKey> whole, parts;
  KVM_REQUIRE_OK(keys.Derive(names, whole));
  for (std::size_t done = 0, size = 1; done < names.size(); done += size, size = std::min<std::size_t>(3 * size, names.size() - done)) {
    KVM_REQUIRE_OK(keys.Derive(std::span(names).subspan(done, size), parts));
  }
  CHECK(whole == parts);
  CHECK(std::set<BlockKey>(whole.begin(), whole.end()).size() == names.size());
}

TEST_CASE("Shard keys: no name and no key before them changes", "[unit]") {
  ShardKeys keys = Made({});
  std::vector<BlockKey> out = {{1, 2}};
  KVM_REQUIRE_OK(keys.Derive({}, out));
  CHECK(out == std::vector<BlockKey>{{1, 2}});
}

TEST_CASE("Shard keys: two shards' keys of a name differ by nothing that other names share", "[unit]") {
  ShardKeys first = Made({0, 2, 0, 1, 0}), second = Made({1, 2, 0, 1, 0});
  const std::vector<BlockKey> names = Names(64);
  std::vector<BlockKey> a, b;
  KVM_REQUIRE_OK(first.Derive(names, a));
  KVM_REQUIRE_OK(second.Derive(names, b));
  std::set<std::uint64_t> differences;
  for (std::size_t i = 0; i < names.size(); ++i) differences.insert(a[i].lo ^ b[i].lo);
  CHECK(differences.size() == names.size());
}
