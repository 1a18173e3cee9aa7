// Learns how soon blocks are used again: for each class of blocks the chance of a use by age, and
// from that the worth of a slot, in hits per slot and time.
//
// Classes are made of what a KV cache knows of a block and a general cache does not:
//   turns   how often its prefix went on since it was first seen. A conversation that went on goes
//           on again.
//   growth  how many new blocks its last request brought. A line of chat goes on more often than a
//           pasted document.
//   end     it was the last block of its last request: partly filled, or a question of one user.
// Ages are log-spaced, four to an octave, the finest being 1/64 of the capacity: differences below
// that do not change a choice. The chance of a use at an age is uses / blocks that reached it,
// those still waiting and those forgotten included (Kaplan, Meier, 1958), so it does not depend on
// which blocks the policy kept. A class with few observations is drawn towards the estimate for its
// number of turns, and that towards the estimate for all blocks. Ages that no block has reached get
// the mean over ages, a chance per time that falls, which is LRU's order.
//
// Density(class, age) is the best ratio, over all times of eviction, of the expected hits until
// then to the expected time in the slot: the index of Gittins (1979), as hit density is for LHD
// (Beckmann, Chen, Cidon, NSDI 2018).
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

namespace kvm::policy {

class ReuseModel {
 public:
  static constexpr std::uint32_t kTurnLevels = 5;    // 0, 1, 2-3, 4-7, 8 and more
  static constexpr std::uint32_t kGrowthLevels = 4;  // below 4, 16, 64, and more
  static constexpr std::uint32_t kClasses = kTurnLevels * kGrowthLevels * 2;
  static constexpr std::uint32_t kAges = 56;  // the last one: about 500 capacities and more

  static std::uint32_t TurnLevel(std::uint32_t turns) noexcept {
    return std::min(static_cast<std::uint32_t>(std::bit_width(turns)), kTurnLevels - 1);
  }
  static std::uint32_t GrowthLevel(std::uint64_t blocks) noexcept {
    return blocks == 0 ? 0 : std::min((static_cast<std::uint32_t>(std::bit_width(blocks)) - 1) / 2, kGrowthLevels - 1);
  }
  static std::uint32_t Class(std::uint32_t turn_level, std::uint32_t growth_level, bool end) noexcept {
    return (turn_level * kGrowthLevels + growth_level) * 2 + (end ? 1 : 0);
  }
  // The age class of an age in units of 1/64 of the capacity.
  static std::uint32_t Age(std::uint32_t units) noexcept {
    const std::uint64_t from_one = std::uint64_t{units} + 1;
    if (from_one < 8) return static_cast<std::uint32_t>(from_one - 1);
    const auto octave = static_cast<std::uint32_t>(std::bit_width(from_one) - 1);
    return std::min(7 + (octave - 3) * 4 + static_cast<std::uint32_t>((from_one >> (octave - 2)) & 3), kAges - 1);
  }

  ReuseModel();

  // Counts a wait that ended with a use of the block, or because the block was forgotten.
  void Ended(std::uint32_t block_class, std::uint32_t age, bool used) {
    const std::size_t at = Cell(block_class, age);
    ++ended_[at];
    if (used) ++used_[at];
  }

  // An update calls Begin, then Waiting for each (sampled) block that still waits, then Finish.
  // `keep` in (0, 1]: the weight of older counts from then on. `oldest`: the greatest age that any
  // block can have by now. `guess_weight`: the weight of the initial guess, in counted waits; it is
  // the number of waits that end together, since those are one observation.
  void Begin() { reached_ = ended_; }
  void Waiting(std::uint32_t block_class, std::uint32_t age) { ++reached_[Cell(block_class, age)]; }
  void Finish(std::uint32_t oldest, double keep, double guess_weight);

  double Density(std::uint32_t block_class, std::uint32_t age) const { return density_[Cell(block_class, age)]; }

  static constexpr std::size_t Cell(std::uint32_t block_class, std::uint32_t age) noexcept {
    return std::size_t{block_class} * kAges + age;
  }

 private:
  using Curve = std::array<double, kAges>;

  void CountReached();
  void ComputeDensity(std::uint32_t block_class, const Curve& chance, std::uint32_t oldest);

  std::vector<double> used_, ended_;  // [kClasses, kAges], of waits that ended at an age
  std::vector<double> reached_;       // [kClasses, kAges], waits that lasted until an age at least
  std::vector<double> density_;       // [kClasses, kAges]
};

}  // namespace kvm::policy
