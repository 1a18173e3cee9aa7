// How far an import over CUDA has come.
//
//                 the first launch         everything is queued
//   preparing ───────────────────► queueing ───────────────────► running
//       │                           │    │                          │
//       │                           │    │ a launch fails           │ the statuses are there,
//       │ nothing to copy,          │    ▼                          │ or the GPU has failed
//       │ too late, or refused      │  draining                     │
//       │                           │    │ what is queued has ended │
//       ▼       the GPU has failed  ▼    ▼                          │
//     ended ◄───────────────────────┴────┴──────────────────────────┘
//
//   preparing  nothing is on the stream: generations are read, the copy is planned
//   queueing   a part may be on the stream, and there is more to queue
//   running    the GPU has all that it gets, and reports
//   draining   the import has failed, but the part that was queued still writes to the destination
//   ended      the statuses are final; nothing writes to the destination any more, unless the GPU
//              has failed
#pragma once

#include <cstdint>

namespace kvm {

enum class ImportPhase : std::uint8_t { kPreparing, kQueueing, kRunning, kDraining, kEnded };

// Whether `to` may follow `from`.
bool MayFollow(ImportPhase from, ImportPhase to) noexcept;

}  // namespace kvm
