// What the offloader's thread is doing with the region (the source) whose blocks it has taken from
// the queue.
//
//     idle ──► offering ◄──► copying
//      ▲          │  │          │  Forget, Stop
//      ├──────────┘  ▼          ▼
//      └───────── leaving ◄── last copy
//
//   idle       waits for blocks; has no source
//   offering   asks kvmd for slots, or reports what is stored; reads nothing of the source
//   copying    reads the source's memory and writes a slab: that memory is freed only after the copy has ended
//   last copy  the source is to be left; the copy under way goes on to its end
//   leaving    begins no more copies of this source, and drops what is left of its blocks
#pragma once

#include <cstdint>

namespace kvm {

enum class OffloadPhase : std::uint8_t { kIdle, kOffering, kCopying, kLastCopy, kLeaving };

// Whether `to` may follow `from`.
bool MayFollow(OffloadPhase from, OffloadPhase to) noexcept;

}  // namespace kvm
