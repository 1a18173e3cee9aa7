// How far an import over CUDA has come: what may follow what.
#include <array>
#include <set>
#include <utility>

#include "cuda/import/import_phase.h"
#include "tests/catch.h"

namespace {

using kvm::ImportPhase;

constexpr std::array kPhases{ImportPhase::kPreparing, ImportPhase::kQueueing, ImportPhase::kRunning, ImportPhase::kDraining,
                             ImportPhase::kEnded};

}  // namespace

TEST_CASE("Import phase: the steps are those of the drawing", "[unit]") {
  using enum ImportPhase;
  const std::set<std::pair<ImportPhase, ImportPhase>> drawn{{kPreparing, kQueueing}, {kPreparing, kEnded}, {kQueueing, kRunning},
                                                            {kQueueing, kDraining},  {kQueueing, kEnded},  {kRunning, kEnded},
                                                            {kDraining, kEnded}};
  for (const ImportPhase from : kPhases) {
    for (const ImportPhase to : kPhases) {
      INFO(static_cast<int>(from) << " to " << static_cast<int>(to));
      CHECK(MayFollow(from, to) == drawn.contains({from, to}));
    }
  }
}
