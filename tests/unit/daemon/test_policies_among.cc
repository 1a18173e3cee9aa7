// A victim among those that may leave, as kvmd's host cache asks for it, against slow models; and
// the lists that hit density keeps leaves in.
#include <deque>
#include <set>

#include "daemon/policy/hit_density.h"
#include "daemon/policy/lru.h"
#include "daemon/policy/policies.h"
#include "daemon/policy/s3_fifo.h"
#include "tests/catch.h"
#include "tests/support/data/policy_cache.h"
#include "tests/support/data/slow_policies.h"

namespace {

using namespace kvm;
using namespace kvm::policy;
using kvm::test::EraseOne;
using kvm::test::PolicyCache;
using kvm::test::PrefixTraffic;
using kvm::test::Random;
using kvm::test::SlowLru;
using kvm::test::SlowS3Fifo;

// Which keys may leave: from all of them to none, others for each request.
struct Pins {
  std::uint64_t salt = 0, kept_of_8 = 0;
  void Change(Random& random) {
    salt = random.Below(1'000'000);
    kept_of_8 = random.Below(9);
  }
  bool MayLeave(Key key) const { return ((key + salt) * 0x9E3779B97F4A7C15ULL >> 61) >= kept_of_8; }
};

std::optional<Key> KeyIn(const PolicyCache& cache, Slot slot) {
  return slot == kNoSlot ? std::nullopt : std::optional(cache.key_in.at(slot));
}

// Drives `policy` with `slow` beside it. Slow: Hit, Insert, Erase, Victim, VictimAmong, Evict.
template <class Policy, class Slow>
void Compare(Policy& policy, Slow& slow, std::uint32_t capacity) {
  PolicyCache cache(policy, capacity);
  PrefixTraffic traffic(400 + capacity, 6);
  Random random(capacity);
  Pins pins;
  int none = 0, among = 0;
  cache.on_hit = [&](Key key) { slow.Hit(key); };
  cache.on_insert = [&](Key key) { slow.Insert(key); };
  cache.may_leave = [&](Key key) { return pins.MayLeave(key); };
  cache.on_choice_among = [&](Slot victim) {
    REQUIRE(KeyIn(cache, victim) == slow.VictimAmong(cache.may_leave));
    ++(victim == kNoSlot ? none : among);
    if (victim == kNoSlot) static_cast<void>(slow.Victim());  // as the cache asks for any then
  };
  cache.on_victim = [&](Slot victim) { slow.Evict(cache.key_in.at(victim)); };
  for (int request = 0; request < 1500; ++request) {
    pins.Change(random);
    cache.Request(traffic.Next());
    EraseOne(cache, random, [&](Key key) { slow.Erase(key); });
  }
  CHECK(none > 20);
  CHECK(among > 100);
}

struct ComparedLru : SlowLru {
  void Hit(Key key) { Use(key); }
  void Insert(Key key) { Use(key); }
  void Evict(Key key) { Erase(key); }
};

}  // namespace

TEST_CASE("Policy: among evictable blocks, LRU chooses the one used least recently", "[unit]") {
  for (const std::uint32_t capacity : {1u, 2u, 7u, 40u, 200u}) {
    INFO("capacity " << capacity);
    LruPolicy policy(capacity);
    ComparedLru slow;
    Compare(policy, slow, capacity);
  }
}

TEST_CASE("Policy: among evictable blocks, S3-FIFO chooses like a slow model of its queues", "[unit]") {
  for (const std::uint32_t capacity : {1u, 2u, 7u, 40u, 200u}) {
    INFO("capacity " << capacity);
    S3FifoPolicy policy(capacity);
    SlowS3Fifo slow{capacity};
    Compare(policy, slow, capacity);
  }
}

TEST_CASE("Policy: among evictable blocks, hit density chooses the leaf of least worth, in LRU's order while LRU is ahead", "[unit]") {
  int by_worth = 0, by_use = 0, inner = 0, none = 0;
  const std::vector<std::pair<std::uint32_t, bool>> cases{{1, true}, {3, true}, {20, true}, {90, true}, {20, false}, {90, false}};
  for (const auto& [capacity, announce] : cases) {
    INFO("capacity " << capacity << ", requests announced " << announce);
    HitDensityPolicy policy(capacity);
    PolicyCache cache(policy, capacity);
    PrefixTraffic traffic(500 + capacity, 8);
    Random random(capacity);
    Pins pins;
    SlowLru uses;
    Key last = kNoKey;  // used by this request
    // As if a request used its blocks from the last to the first: behind the one before it.
    cache.on_hit = cache.on_insert = [&](Key key) {
      uses.Erase(key);
      const auto before = cache.parent_of.at(key) == last ? std::find(uses.keys.begin(), uses.keys.end(), last) : uses.keys.end();
      uses.keys.insert(before == uses.keys.end() ? uses.keys.begin() : std::next(before), key);
      last = key;
    };
    cache.may_leave = [&](Key key) { return pins.MayLeave(key); };
    cache.on_choice_among = [&](Slot victim) {
      std::vector<Slot> leaves;
      bool any = false;
      for (const auto& [slot, key] : cache.key_in) {
        if (!pins.MayLeave(key)) continue;
        any = true;
        if (policy.IsLeaf(slot)) leaves.push_back(slot);
      }
      REQUIRE((victim != kNoSlot) == any);
      none += any ? 0 : 1;
      if (!any) return;
      REQUIRE(pins.MayLeave(cache.key_in.at(victim)));
      REQUIRE(policy.IsLeaf(victim) == !leaves.empty());
      const auto oldest_of = [&](bool leaves_only) {
        return *uses.VictimAmong([&](Key key) {
          const auto at = cache.slot_of.find(key);
          return at != cache.slot_of.end() && pins.MayLeave(key) && (!leaves_only || policy.IsLeaf(at->second));
        });
      };
      if (leaves.empty()) {
        ++inner;
        if (announce) REQUIRE(cache.key_in.at(victim) == oldest_of(false));
      } else if (policy.follows_lru()) {
        ++by_use;
        REQUIRE(cache.key_in.at(victim) == oldest_of(true));
      } else {
        ++by_worth;
        // One that was an orphan when it was listed, and is none, leaves last.
        const auto was_orphan = [&](Slot slot) {
          return policy.Worth(slot) < 0 && cache.slot_of.contains(cache.parent_of.at(cache.key_in.at(slot)));
        };
        for (const Slot slot : leaves) {
          if (!was_orphan(slot)) REQUIRE((!was_orphan(victim) && policy.Worth(victim) <= policy.Worth(slot)));
        }
      }
    };
    for (int request = 0; request < 1500; ++request) {
      pins.Change(random);
      last = kNoKey;
      cache.Request(traffic.Next(), announce);
      EraseOne(cache, random);
    }
  }
  CHECK(by_worth > 500);
  CHECK(by_use > 100);
  CHECK(inner > 100);
  CHECK(none > 100);
}

TEST_CASE("Policy: a choice looks at no more slots than the limit", "[unit]") {
  constexpr std::uint32_t kCapacity = 3 * kMaxVictimsLookedAt;
  for (const PolicyKind kind : kAllPolicies) {
    INFO(PolicyName(kind));
    const auto policy = MakePolicy(kind, kCapacity);
    for (Slot slot = 0; slot < kCapacity; ++slot) policy->OnInsert(slot, {slot + 1, kNoKey, 0});
    std::set<Slot> seen;
    std::uint32_t looked = 0;
    const auto count = [&](Slot slot) {
      ++looked;
      seen.insert(slot);
      return false;
    };
    CHECK(policy->ChooseVictimAmong(count) == kNoSlot);
    CHECK(looked >= kMaxVictimsLookedAt);
    CHECK(looked <= 2 * kMaxVictimsLookedAt + 1);
    CHECK(seen.size() < kCapacity);
    const Slot last = *seen.rbegin();
    CHECK(policy->ChooseVictimAmong([&](Slot slot) { return slot == last; }) == last);
  }
}

TEST_CASE("Ranked lists: nodes keep their order when runs move, and the first list that holds one is found", "[unit]") {
  constexpr std::uint32_t kLists = 70, kNodes = 300;
  Random random(1);
  RankedLists lists(kLists, kNodes);
  std::vector<Links> links(kNodes);
  const auto links_of = [&](std::uint32_t node) -> Links& { return links[node]; };
  struct At {
    std::uint32_t run = kNil, stamp = 0;
  };
  std::vector<At> at(kNodes);
  std::vector<std::deque<std::uint32_t>> slow(kLists);  // newest first
  std::vector<std::uint32_t> rank(kLists);
  for (std::uint32_t list = 0; list < kLists; ++list) rank[list] = list;
  for (int step = 0; step < 20'000; ++step) {
    const auto node = static_cast<std::uint32_t>(random.Below(kNodes));
    const auto list = static_cast<std::uint32_t>(random.Below(random.OneIn(2) ? 3 : kLists));
    if (at[node].run != kNil) {
      auto& queue = slow[lists.ListOf(at[node].run)];
      const auto found = std::find(queue.begin(), queue.end(), node);
      REQUIRE(found != queue.end());
      queue.erase(found);
      lists.Remove(at[node].run, node, links_of);
      at[node].run = kNil;
    } else {
      const bool front = random.OneIn(2);
      at[node].stamp = static_cast<std::uint32_t>(random.Below(3));
      at[node].run = lists.Add(list, node, at[node].stamp, front, links_of);
      front ? slow[list].push_front(node) : slow[list].push_back(node);
    }
    if (const auto to = static_cast<std::uint32_t>(random.Below(kLists)); random.OneIn(4) && to != list) {
      // All with one stamp at the back of a list: as many runs as that is.
      const std::uint32_t stamp = slow[list].empty() ? 0 : at[slow[list].back()].stamp;
      while (!lists.empty(list) && lists.BackStamp(list) == stamp) lists.MoveBackRun(list, to);
      for (; !slow[list].empty() && at[slow[list].back()].stamp == stamp; slow[list].pop_back()) slow[to].push_front(slow[list].back());
    }
    if (random.OneIn(500)) {
      for (std::uint32_t& each : rank) each = static_cast<std::uint32_t>(random.Below(10));
      lists.Rank([&](std::uint32_t each) { return rank[each]; });
    }
    std::uint32_t first = kNil;
    for (std::uint32_t each = 0; each < kLists; ++each) {
      REQUIRE(lists.empty(each) == slow[each].empty());
      if (!slow[each].empty() && (first == kNil || rank[each] < rank[first])) first = each;
    }
    REQUIRE(lists.First() == first);
    if (first == kNil) continue;
    REQUIRE(lists.Back(first) == slow[first].back());
    std::vector<std::uint32_t> from_back;
    const auto note = [&](std::uint32_t each) {
      REQUIRE(lists.ListOf(at[each].run) == first);
      from_back.push_back(each);
      return true;
    };
    lists.ForEachFromBack(first, note, links_of);
    REQUIRE(from_back == std::vector<std::uint32_t>(slow[first].rbegin(), slow[first].rend()));
  }
}
