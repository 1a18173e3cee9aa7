// OffloadPhase: what the offloader's thread does with the region (the source) whose blocks it has
// taken from the queue.
//
//     idle ──► offering ◄──► copying
//      ▲          │  │          │  Forget, Stop
//      ├──────────┘  ▼          ▼
//      └───────── leaving ◄── last copy
//
//   idle       waits for blocks; has no source
//   offering   asks kvmd for slots, or reports what is stored; reads nothing of the source
//   copying    reads the source's memory and writes a slab: that memory is freed only after the
//              copy has ended
//   last copy  the source is going to be closed; the copy under way goes on to its end
//   leaving    begins no more copies of this source, and drops the rest of its blocks
#pragma once

#include <cstdint>

namespace kvm {

enum class OffloadPhase : std::uint8_t { kIdle, kOffering, kCopying, kLastCopy, kLeaving };

// Whether `to` may follow `from`.
bool MayFollow(OffloadPhase from, OffloadPhase to) noexcept;

}  // namespace kvm
