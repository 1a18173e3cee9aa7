// How much work kvmd's one thread has done, in units that do not depend on the machine.
//
// A message of a few bytes can ask for much: a chain of 16,384 blocks, a search over every slot of
// a slab, 129 descriptors. So no limit on bytes or messages bounds what a client costs. Whatever
// loops over something that a client made as long as it is counts its steps here (Spend), and
// whatever can stop in the middle asks a WorkBudget whether it should. daemon/server/fair_turns.h
// divides the thread by what was spent.
//
// A unit is about one look at a record, slot, row or step of a path: 20 to 100 ns. kSliceUnits of
// them take about a millisecond on a quiet machine. Work that can't be cut (a path that a policy
// must be told as a whole) may go beyond a slice once; its user then waits for so much longer.
//
// Each thread counts for itself.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvm::daemon {

using WorkUnits = std::uint64_t;

inline constexpr WorkUnits kSliceUnits = 16'384;  // of one message, before others have their turn
inline constexpr WorkUnits kSystemCallUnits = 16;
inline constexpr WorkUnits kDescriptorUnits = 4;   // to pass one on
inline constexpr WorkUnits kNewMemoryUnits = 128;  // to make or to check one memfd
inline constexpr WorkUnits kMessageUnits = 16;     // to read or to write one, beside its bytes
inline constexpr std::size_t kBytesPerUnit = 64;   // of a message

class WorkMeter {
 public:
  static void Spend(WorkUnits units) noexcept { spent_ += units; }
  // Since the thread began.
  static WorkUnits spent() noexcept { return spent_; }

 private:
  static inline thread_local WorkUnits spent_ = 0;
};

inline void Spend(WorkUnits units) noexcept { WorkMeter::Spend(units); }
inline void SpendOnMessage(std::size_t bytes, std::size_t fds = 0) noexcept {
  Spend(kMessageUnits + bytes / kBytesPerUnit + fds * kDescriptorUnits);
}

// What a call may spend, from its construction on.
class WorkBudget {
 public:
  explicit WorkBudget(WorkUnits units = kSliceUnits) noexcept : end_(WorkMeter::spent() + units) {}
  bool used_up() const noexcept { return WorkMeter::spent() >= end_; }

 private:
  const WorkUnits end_;
};

}  // namespace kvm::daemon
