#include "cuda/import/import_phase.h"

namespace kvm {

bool MayFollow(ImportPhase from, ImportPhase to) noexcept {
  switch (from) {
    case ImportPhase::kPreparing: return to == ImportPhase::kQueueing || to == ImportPhase::kEnded;
    case ImportPhase::kQueueing: return to == ImportPhase::kRunning || to == ImportPhase::kDraining || to == ImportPhase::kEnded;
    case ImportPhase::kRunning:
    case ImportPhase::kDraining: return to == ImportPhase::kEnded;
    case ImportPhase::kEnded: return false;
  }
  return false;
}

}  // namespace kvm
