// Eviction policies with 1 M blocks resident: the cost of one block that is hit, or that is
// inserted where another one leaves. Conversations of 24 blocks with a shared prompt in front, one
// request in three goes on with one of the conversations of late.
#include <benchmark/benchmark.h>

#include <vector>

#include "daemon/policy/huge_pages.h"
#include "daemon/policy/policies.h"
#include "tests/support/data/random.h"

namespace {

using namespace kvm;
using namespace kvm::policy;

constexpr std::uint32_t kCapacity = 1'000'000;
constexpr std::uint32_t kChain = 24, kRecent = 100'000;
constexpr std::uint32_t kRequests = 400'000;
constexpr std::uint32_t kWarmUp = 8;  // capacities: more than any policy remembers
constexpr std::uint32_t kNumbers = kWarmUp * kCapacity + (kRequests + 2) * kChain;

// What the traffic itself costs, with victims at random.
class NoPolicy final : public EvictionPolicy {
 public:
  std::string_view name() const noexcept override { return "none"; }
  Order order() const noexcept override { return Order::kFirstToLast; }
  void OnInsert(Slot, const Block&) override {}
  void OnHit(Slot) override {}
  void OnErase(Slot) override {}
  Slot ChooseVictim() override { return next_ = (next_ + kStep) % kCapacity; }
  Slot ChooseVictimAmong(const kvm::policy::Evictable&) override { return ChooseVictim(); }

 private:
  static constexpr Slot kStep = 611'953;  // shares no factor with kCapacity
  Slot next_ = 0;
};

// Every key is used by the index of its block, so that what is measured is the policy and not a
// table of keys; its own tables are on huge pages and fetched ahead for the same reason.
class Traffic {
 public:
  explicit Traffic(EvictionPolicy& policy) : policy_(policy), slot_of_(kNumbers, kNoSlot), block_in_(kCapacity) {}

  // One request; blocks used.
  std::size_t Next() {
    const bool goes_on = conversations_ > kRecent && random_.Below(3) == 0;
    const std::uint32_t conversation = goes_on ? conversations_ - 1 - static_cast<std::uint32_t>(random_.Below(kRecent)) : conversations_++;
    path_.clear();
    for (std::uint32_t i = 0; i < kChain; ++i) path_.push_back(BlockAt(conversation, i));
    for (const Block& block : path_) __builtin_prefetch(&SlotOf(block.key), 1);
    return path_.size();
  }

  void Serve() {
    policy_.OnRequest(path_);
    const bool first_to_last = policy_.order() == Order::kFirstToLast;
    for (std::uint32_t i = 0; i < kChain; ++i) Use(path_[first_to_last ? i : kChain - 1 - i]);
  }

  bool full() const { return filled_ == kCapacity; }

 private:
  // As good as a hash, which keys are, and with an inverse. Source: the finalizer of SplitMix64.
  static Key KeyOf(std::uint64_t number) {
    std::uint64_t x = number + 1;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    return x ^ x >> 31;
  }
  static std::uint64_t NumberOf(Key key) {
    std::uint64_t x = (key ^ key >> 31 ^ key >> 62) * 0x319642B2D24D8EC3;
    x = (x ^ x >> 27 ^ x >> 54) * 0x96DE1B173F119089;
    return (x ^ x >> 30 ^ x >> 60) - 1;
  }
  Block BlockAt(std::uint32_t conversation, std::uint32_t depth) const {
    const auto number = [&](std::uint32_t at) { return at == 0 ? 0 : (std::uint64_t{conversation} * kChain + at); };
    return {KeyOf(number(depth)), depth == 0 ? kNoKey : KeyOf(number(depth - 1)), depth};
  }
  Slot& SlotOf(Key key) { return slot_of_[NumberOf(key)]; }

  void Use(const Block& block) {
    Slot& at = SlotOf(block.key);
    if (at != kNoSlot) return policy_.OnHit(at);
    Slot slot = filled_;
    if (full()) {
      slot = policy_.ChooseVictim();
      policy_.OnErase(slot);
      SlotOf(block_in_[slot]) = kNoSlot;
    } else {
      ++filled_;
    }
    at = slot;
    block_in_[slot] = block.key;
    policy_.OnInsert(slot, block);
  }

  EvictionPolicy& policy_;
  test::Random random_{1};
  HugeVector<Slot> slot_of_;
  HugeVector<Key> block_in_;
  std::vector<Block> path_;
  std::uint32_t filled_ = 0, conversations_ = 0;
};

void Run(benchmark::State& state, EvictionPolicy& policy) {
  Traffic traffic(policy);
  for (std::uint64_t blocks = 0; blocks < std::uint64_t{kWarmUp} * kCapacity;) {
    blocks += traffic.Next();
    traffic.Serve();
  }
  std::int64_t blocks = 0;
  for (auto _ : state) {
    blocks += static_cast<std::int64_t>(traffic.Next());
    traffic.Serve();
  }
  state.counters["per_block"] = benchmark::Counter(static_cast<double>(blocks), benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void BM_PolicyNone(benchmark::State& state) {
  NoPolicy none;
  Run(state, none);
}
void BM_Policy(benchmark::State& state, PolicyKind kind) { Run(state, *MakePolicy(kind, kCapacity)); }

BENCHMARK(BM_PolicyNone)->Iterations(kRequests)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_Policy, lru, PolicyKind::kLru)->Iterations(kRequests)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_Policy, s3_fifo, PolicyKind::kS3Fifo)->Iterations(kRequests)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_Policy, hit_density, PolicyKind::kHitDensity)->Iterations(kRequests)->Unit(benchmark::kMicrosecond);

}  // namespace
