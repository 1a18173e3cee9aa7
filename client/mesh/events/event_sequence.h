// The sequence number with which a process's stream of events begins.
//
// Subscribers take a number that is not above the last one for a repetition, also after the
// publisher was started anew. So a stream begins at a time, in units of which no process uses up as
// many as pass: 2^20 a second.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvm::mesh {

inline constexpr int kSequenceBitsOfSecond = 20;

constexpr std::uint64_t FirstSequence(std::chrono::system_clock::time_point now) noexcept {
  const auto since = std::chrono::duration_cast<std::chrono::nanoseconds>(now.time_since_epoch()).count();
  const auto ns = static_cast<std::uint64_t>(since);
  constexpr std::uint64_t kSecond = 1'000'000'000;
  return ((ns / kSecond) << kSequenceBitsOfSecond) + (((ns % kSecond) << kSequenceBitsOfSecond) / kSecond);
}

}  // namespace kvm::mesh
