#include "client/offload/offload_phase.h"

namespace kvm {

bool MayFollow(OffloadPhase from, OffloadPhase to) noexcept {
  switch (from) {
    case OffloadPhase::kIdle: return to == OffloadPhase::kOffering;
    case OffloadPhase::kOffering: return to == OffloadPhase::kIdle || to == OffloadPhase::kCopying || to == OffloadPhase::kLeaving;
    case OffloadPhase::kCopying: return to == OffloadPhase::kOffering || to == OffloadPhase::kLastCopy;
    case OffloadPhase::kLastCopy: return to == OffloadPhase::kLeaving;
    case OffloadPhase::kLeaving: return to == OffloadPhase::kIdle;
  }
  return false;
}

}  // namespace kvm
