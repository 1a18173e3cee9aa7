#include "client/near_misses.h"

#include <algorithm>
#include <set>
#include <utility>

namespace kvm {
namespace {

// Calls `visit` with the row, the spec and the differences of each; until it returns true.
template <class Visit>
bool AnyNearMiss(const RegistryView& registry, const Model& model, Visit&& visit) {
  for (std::uint32_t row = 0; row < registry.model_rows(); ++row) {
    layout::ModelInfo info;
    if (!registry.ReadModel(row, info) || info.fingerprint == model.fingerprint) continue;
    Result<ModelSpec> theirs = ModelSpec::FromCanonical({info.spec, info.spec_bytes});
    if (!theirs) continue;
    std::vector<ModelFieldDifference> differences = Difference(model.spec, *theirs);
    const bool near = theirs->model_id == model.spec.model_id || differences.size() == 1;
    if (near && visit(row, std::move(*theirs), std::move(differences))) return true;
  }
  return false;
}

}  // namespace

std::vector<NearMiss> NearMissesOf(const RegistryView& registry, const Model& model) {
  std::vector<NearMiss> out;
  AnyNearMiss(registry, model, [&](std::uint32_t, ModelSpec theirs, std::vector<ModelFieldDifference> differences) {
    out.push_back({std::move(theirs), std::move(differences)});
    return false;
  });
  return out;
}

bool NearMissServes(const RegistryView& registry, const std::vector<Model>& models) {
  std::set<std::uint32_t> served;
  for (std::uint32_t row = 0; row < registry.region_rows(); ++row) {
    layout::RegionInfo info;
    if (registry.ReadRegion(row, info) && static_cast<layout::RegionState>(info.state) == layout::RegionState::kLive)
      served.insert(info.model);
  }
  return std::any_of(models.begin(), models.end(), [&](const Model& model) {
    return AnyNearMiss(registry, model,
                       [&](std::uint32_t row, const ModelSpec&, const std::vector<ModelFieldDifference>&) { return served.contains(row); });
  });
}

}  // namespace kvm
