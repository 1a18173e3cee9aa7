#include "client/region/region_state.h"

namespace kvm {

bool MayFollow(RegionState from, RegionState to) noexcept {
  switch (from) {
    case RegionState::kOffline: return to == RegionState::kRegistering || to == RegionState::kClosed;
    case RegionState::kRegistering: return to == RegionState::kRegistered || to == RegionState::kOffline || to == RegionState::kAbandoned;
    case RegionState::kRegistered: return to == RegionState::kOffline || to == RegionState::kClosing;
    case RegionState::kAbandoned: return to == RegionState::kClosing || to == RegionState::kClosed;
    case RegionState::kClosing: return to == RegionState::kClosed;
    case RegionState::kClosed: return false;
  }
  return false;
}

}  // namespace kvm
