// Eviction policies against slow, obvious models of what they say they do, on random prefixes.
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

}  // namespace

TEST_CASE("Policy: LRU evicts like a list in order of use", "[unit]") {
  for (const std::uint32_t capacity : {1u, 2u, 7u, 40u}) {
    INFO("capacity " << capacity);
    LruPolicy policy(capacity);
    PolicyCache cache(policy, capacity);
    PrefixTraffic traffic(capacity, 6);
    Random random(capacity);
    SlowLru slow;
    cache.on_hit = cache.on_insert = [&](Key key) { slow.Use(key); };
    cache.on_victim = [&](Slot victim) {
      REQUIRE(cache.key_in.at(victim) == slow.Victim());
      slow.Erase(slow.Victim());
    };
    for (int request = 0; request < 1500; ++request) {
      cache.Request(traffic.Next());
      EraseOne(cache, random, [&](Key key) { slow.Erase(key); });
    }
  }
}

TEST_CASE("Policy: S3-FIFO evicts like a slow model of its three queues", "[unit]") {
  for (const std::uint32_t capacity : {1u, 2u, 7u, 40u, 200u}) {
    INFO("capacity " << capacity);
    S3FifoPolicy policy(capacity);
    PolicyCache cache(policy, capacity);
    PrefixTraffic traffic(100 + capacity, 6);
    Random random(capacity);
    SlowS3Fifo slow{capacity};
    cache.on_hit = [&](Key key) { slow.Hit(key); };
    cache.on_insert = [&](Key key) { slow.Insert(key); };
    cache.on_victim = [&](Slot victim) {
      REQUIRE(cache.key_in.at(victim) == slow.Victim());
      slow.Evict(cache.key_in.at(victim));
    };
    for (int request = 0; request < 1500; ++request) {
      cache.Request(traffic.Next());
      EraseOne(cache, random, [&](Key key) { slow.Erase(key); });
    }
  }
}

TEST_CASE("Policy: hit density knows the leaves, and evicts the one that is worth least", "[unit]") {
  const std::vector<std::pair<std::uint32_t, bool>> cases{{3, true}, {20, true}, {90, true}, {3, false}, {20, false}, {90, false}};
  for (const auto& [capacity, announce] : cases) {
    INFO("capacity " << capacity << ", requests announced " << announce);
    HitDensityPolicy policy(capacity);
    PolicyCache cache(policy, capacity);
    PrefixTraffic traffic(200 + capacity, 8);
    Random random(capacity);
    int by_worth = 0;
    cache.on_victim = [&](Slot victim) {
      REQUIRE(policy.IsLeaf(victim));
      REQUIRE_FALSE(cache.HasResidentChild(cache.key_in.at(victim)));
      if (policy.follows_lru()) return;
      ++by_worth;
      for (const auto& [slot, key] : cache.key_in) {
        if (policy.IsLeaf(slot)) REQUIRE(policy.Worth(victim) <= policy.Worth(slot));
      }
    };
    for (int request = 0; request < 800; ++request) {
      cache.Request(traffic.Next(), announce);
      EraseOne(cache, random);
      for (const auto& [slot, key] : cache.key_in) {
        INFO("request " << request << " key " << key);
        REQUIRE(policy.IsLeaf(slot) == !cache.HasResidentChild(key));
      }
    }
    if (!announce) CHECK(by_worth > 100);  // without requests there is no guard
  }
}

TEST_CASE("Policy: hit density counts what LRU would hit, exactly", "[unit]") {
  for (const std::uint32_t capacity : {1u, 5u, 30u, 200u}) {
    INFO("capacity " << capacity);
    HitDensityPolicy policy(capacity);
    PolicyCache cache(policy, capacity);
    LruPolicy lru(capacity);
    PolicyCache lru_cache(lru, capacity);
    PrefixTraffic traffic(300 + capacity, 9);
    std::uint64_t hits = 0, lru_hits = 0;
    for (int request = 0; request < 2000; ++request) {
      const std::vector<Key> path = traffic.Next();
      hits += cache.LeadingHits(path);
      lru_hits += lru_cache.LeadingHits(path);
      cache.Request(path);
      lru_cache.Request(path);
      REQUIRE(policy.hits() == hits);
      REQUIRE(policy.lru_hits() == lru_hits);
    }
  }
}

TEST_CASE("Policy: hit density evicts in LRU's order while LRU is ahead", "[unit]") {
  constexpr std::uint32_t kCapacity = 64;
  HitDensityPolicy policy(kCapacity);
  PolicyCache cache(policy, kCapacity);
  PrefixTraffic traffic(1, 8);
  std::map<Key, int> used_at;  // request
  int followed = 0;
  cache.on_victim = [&](Slot victim) {
    if (!policy.follows_lru()) return;
    ++followed;
    for (const auto& [slot, key] : cache.key_in) REQUIRE(used_at.at(key) >= used_at.at(cache.key_in.at(victim)));
  };
  std::uint64_t blocks = 0;
  for (int i = 0; i < 3000; ++i) {
    const std::vector<Key> path = traffic.Next();
    blocks += path.size();
    for (const Key key : path) used_at[key] = i;
    cache.Request(path);
  }
  CHECK(followed > 100);
  CHECK(static_cast<double>(policy.hits()) >= static_cast<double>(policy.lru_hits()) - 0.003 * static_cast<double>(blocks));
}

TEST_CASE("Policy: blocks without their parent leave first", "[unit]") {
  HitDensityPolicy policy(8);
  PolicyCache cache(policy, 8);
  cache.Request({1, 2, 3});
  cache.Request({10, 11, 12});
  cache.Request({20, 21});
  cache.Erase(cache.slot_of.at(11));
  cache.Request({20, 21});  // 12 was used before and is no use any more
  cache.Use({11, 10, 1});
  cache.Erase(cache.slot_of.at(11));
  cache.parent_of[31] = 30;
  cache.Use({31, 30, 1});  // its parent was never seen
  CHECK(cache.slot_of.contains(31));
  cache.Request({40});
  CHECK_FALSE(cache.slot_of.contains(31));
}

TEST_CASE("Policy: each one survives requests larger than the cache, and blocks reported in any order", "[unit]") {
  for (const PolicyKind kind : kAllPolicies) {
    for (const std::uint32_t capacity : {1u, 2u, 13u, 300u}) {
      INFO(PolicyName(kind) << " capacity " << capacity);
      const auto policy = MakePolicy(kind, capacity);
      PolicyCache cache(*policy, capacity);
      PrefixTraffic traffic(capacity, 40);
      Random random(capacity);
      for (int request = 0; request < 2000; ++request) {
        std::vector<Key> path = traffic.Next();
        switch (random.Below(4)) {
          case 0: cache.Request(path, false); break;  // not announced
          case 1:                                     // one block, its parent perhaps not known
            cache.parent_of[path.back()] = path.size() > 1 ? path[path.size() - 2] : kNoKey;
            cache.Use({path.back(), random.OneIn(2) ? kNoKey : cache.parent_of[path.back()], static_cast<std::uint32_t>(path.size() - 1)});
            break;
          case 2:  // keys that name each other as parents
            cache.parent_of[path.front()] = path.back();
            cache.Use({path.front(), path.back(), 3});
            break;
          default: cache.Request(path); break;
        }
        EraseOne(cache, random);
      }
      while (!cache.key_in.empty()) {
        const Slot victim = policy->ChooseVictim();
        REQUIRE(cache.key_in.contains(victim));
        cache.Erase(victim);
      }
      CHECK(policy->ChooseVictim() == kNoSlot);
    }
  }
}

TEST_CASE("Policy: equal keys of several blocks, and blocks that name themselves as parent, do no harm", "[unit]") {
  constexpr std::uint32_t kCapacity = 32;
  for (const PolicyKind kind : kAllPolicies) {
    INFO(PolicyName(kind));
    const auto policy = MakePolicy(kind, kCapacity);
    Random random(7);
    std::vector<Slot> free(kCapacity), used;
    std::iota(free.begin(), free.end(), 0);
    // More keys than are remembered, so that what a new block names as its parent may be what is
    // forgotten for it.
    for (int i = 0; i < 100'000; ++i) {
      const Key key = 1 + random.Below(random.OneIn(3) ? 40 : 40'000);
      if (!used.empty() && random.OneIn(6)) policy->OnHit(random.Pick(used));
      if (random.OneIn(4)) {
        const std::vector<Block> path{{key, kNoKey, 0}, {key, key, 1}};
        policy->OnRequest(path);
      }
      if (free.empty()) {
        const Slot victim = policy->ChooseVictim();
        const auto found = std::find(used.begin(), used.end(), victim);
        REQUIRE(found != used.end());
        policy->OnErase(victim);
        used.erase(found);
        free.push_back(victim);
      }
      policy->OnInsert(free.back(), {key, random.OneIn(4) ? key : 1 + random.Below(40'000), 1});
      used.push_back(free.back());
      free.pop_back();
    }
    while (!used.empty()) {
      const Slot victim = policy->ChooseVictim();
      REQUIRE(std::erase(used, victim) == 1);
      policy->OnErase(victim);
    }
    CHECK(policy->ChooseVictim() == kNoSlot);
  }
}

TEST_CASE("Reuse model: before the first observation, older blocks are worth less, then observations decide", "[unit]") {
  ReuseModel model;
  model.Begin();
  model.Finish(30, 1, 20);
  // An octave
  for (std::uint32_t age = 11; age <= 30; ++age) CHECK(model.Density(0, age) < model.Density(0, age - 4));

  // Class 3 comes back at age 20, class 5 never does.
  for (int i = 0; i < 10'000; ++i) {
    model.Ended(3, 20, i % 2 == 0);
    model.Ended(5, 25, false);
  }
  model.Begin();
  model.Finish(30, 1, 20);
  CHECK(model.Density(3, 19) > model.Density(3, 10));
  CHECK(model.Density(3, 10) > model.Density(3, 0));
  CHECK(model.Density(3, 19) > 10 * model.Density(3, 22));
  for (std::uint32_t age = 0; age < 20; ++age) CHECK(model.Density(3, age) > model.Density(5, age));

  // Half of those that come to age 20 are used there, after waiting from age 0: 0.5 over the units
  // between.
  const double units = 8 * (1 + 0.25) * 8;  // where age 20 begins: octave 6, second quarter
  CHECK(model.Density(3, 0) == Approx(0.5 / units).epsilon(0.15));
}

TEST_CASE("Reuse model: ages are log-spaced, four to an octave", "[unit]") {
  CHECK(ReuseModel::Age(0) == 0);
  CHECK(ReuseModel::Age(6) == 6);
  CHECK(ReuseModel::Age(7) == 7);
  CHECK(ReuseModel::Age(15) == 11);
  CHECK(ReuseModel::Age(31) == 15);
  CHECK(ReuseModel::Age(~0u) == ReuseModel::kAges - 1);
  for (std::uint32_t units = 1; units < 100'000; ++units) REQUIRE(ReuseModel::Age(units) - ReuseModel::Age(units - 1) <= 1);
  CHECK(ReuseModel::TurnLevel(0) == 0);
  CHECK(ReuseModel::TurnLevel(3) == 2);
  CHECK(ReuseModel::TurnLevel(200) == ReuseModel::kTurnLevels - 1);
  CHECK(ReuseModel::GrowthLevel(3) == 0);
  CHECK(ReuseModel::GrowthLevel(4) == 1);
  CHECK(ReuseModel::GrowthLevel(1'000'000) == ReuseModel::kGrowthLevels - 1);
}
