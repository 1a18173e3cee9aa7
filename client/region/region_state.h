// RegionState: the registration of a region of this client with kvmd.
//
//              ask                    kvmd accepts
//   offline ────────► registering ─────────────────► registered
//    │  ▲ ▲                │  │                        │    │
//    │  │ └── refused, cut ┘  │     the connection ends│    │
//    │  └─────────────────────┼────────────────────────┘    │
//    │ Close                  │ Close                       │ Close
//    ▼       refused, cut     ▼        kvmd accepts         ▼
//   closed ◄───────────── abandoned ──────────────────► closing
//    ▲                                                      │
//    └───── its row is taken out, or the connection ends ───┘
//
//   offline      kvmd does not know it: it was never asked, has refused, or the connection has
//                ended since
//   registering  a request is under way; other callers that want one wait for its answer
//   registered   it has a row in kvmd's registry, and publishes are sent
//   abandoned    closed while a request is under way
//   closing      closed, and kvmd has to remove its row from the registry
//   closed       its blocks have ended, and the engine may reuse registered memory
#pragma once

#include <cstdint>

namespace kvm {

enum class RegionState : std::uint8_t { kOffline, kRegistering, kRegistered, kAbandoned, kClosing, kClosed };

// Whether `to` may follow `from`.
bool MayFollow(RegionState from, RegionState to) noexcept;

// Whether blocks may be published, that is, the region is not closed.
constexpr bool IsOpen(RegionState state) noexcept {
  return state == RegionState::kOffline || state == RegionState::kRegistering || state == RegionState::kRegistered;
}

}  // namespace kvm
