#include "daemon/policy/reuse_model.h"

#include <cmath>

namespace kvm::policy {
namespace {

// The guess before anything was counted: one use in 50 waits at each age.
constexpr double kFirstGuessUses = 1, kFirstGuessWaits = 50;
// How many ages beyond the oldest are considered: one octave.
constexpr std::uint32_t kAhead = 4;

// Where an age begins, in units from one.
double Begins(std::uint32_t age) {
  if (age < 7) return age + 1;
  return std::ldexp(1 + ((age - 7) % 4) * 0.25, static_cast<int>(3 + (age - 7) / 4));
}

struct Pool {
  std::array<double, ReuseModel::kAges> used{}, reached{};
  double all_used = 0, all_reached = 0;

  void Add(const double* used_from, const double* reached_from) {
    for (std::uint32_t age = 0; age < ReuseModel::kAges; ++age) {
      used[age] += used_from[age];
      reached[age] += reached_from[age];
      all_used += used_from[age];
      all_reached += reached_from[age];
    }
  }
};

}  // namespace

ReuseModel::ReuseModel() : used_(std::size_t{kClasses} * kAges), ended_(used_.size()), reached_(used_.size()), density_(used_.size()) {
  Finish(0, 1, 1);
}

void ReuseModel::CountReached() {
  for (std::uint32_t each = 0; each < kClasses; ++each) {
    for (std::uint32_t age = kAges - 1; age > 0; --age) reached_[Cell(each, age - 1)] += reached_[Cell(each, age)];
  }
}

void ReuseModel::Finish(std::uint32_t oldest, double keep, double guess_weight) {
  const auto guessed = [&](double uses, double waits, double guess) { return (uses + guess * guess_weight) / (waits + guess_weight); };
  CountReached();
  Pool all;
  std::array<Pool, std::size_t{kTurnLevels} * 2> by_turns;
  for (std::uint32_t each = 0; each < kClasses; ++each) {
    const std::uint32_t turns = each / (kGrowthLevels * 2) * 2 + each % 2;
    all.Add(&used_[Cell(each, 0)], &reached_[Cell(each, 0)]);
    by_turns[turns].Add(&used_[Cell(each, 0)], &reached_[Cell(each, 0)]);
  }
  const double mean = (all.all_used + kFirstGuessUses) / (all.all_reached + kFirstGuessWaits);
  for (std::uint32_t each = 0; each < kClasses; ++each) {
    const Pool& turns = by_turns[each / (kGrowthLevels * 2) * 2 + each % 2];
    const double factor = guessed(turns.all_used, turns.all_reached, mean) / mean;
    Curve chance;
    for (std::uint32_t age = 0; age < kAges; ++age) {
      const double of_all = std::min(0.9, factor * guessed(all.used[age], all.reached[age], mean));
      const double of_turns = guessed(turns.used[age], turns.reached[age], of_all);
      chance[age] = guessed(used_[Cell(each, age)], reached_[Cell(each, age)], of_turns);
    }
    ComputeDensity(each, chance, std::min(oldest + kAhead, kAges - 1));
  }
  for (double& count : used_) count *= keep;
  for (double& count : ended_) count *= keep;
}

void ReuseModel::ComputeDensity(std::uint32_t block_class, const Curve& chance, std::uint32_t oldest) {
  for (std::uint32_t age = 0; age < kAges; ++age) {
    double waiting = 1, hits = 0, time = 0, best = 0;
    for (std::uint32_t at = age; at <= oldest; ++at) {
      hits += waiting * chance[at];
      time += waiting * (Begins(at + 1) - Begins(at)) * (1 - chance[at] / 2);
      waiting *= 1 - chance[at];
      best = std::max(best, hits / time);
    }
    // No block is that old yet: such ages rank below all others, the greatest age lowest.
    density_[Cell(block_class, age)] = age <= oldest ? best : 1e-12 / Begins(age);
  }
}

}  // namespace kvm::policy
