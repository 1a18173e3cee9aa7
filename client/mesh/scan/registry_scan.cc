#include "client/mesh/scan/registry_scan.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

namespace kvm::mesh {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kScanTimeout{2000};

bool IsImportable(const layout::RegionInfo& region) {
  const auto state = static_cast<layout::RegionState>(region.state);
  return state == layout::RegionState::kLive || state == layout::RegionState::kOrphan;
}

bool IsInHostMemory(const layout::RegionInfo& region) {
  return static_cast<layout::HandleKind>(region.handle_kind) == layout::HandleKind::kHostMemfd;
}

// Other shards have the same blocks.
bool IsFirstShard(const Shard& shard) { return shard.tp_rank == 0 && shard.pp_rank == 0 && shard.kv_group == 0; }

// The model's place in `models`; none: it is not to be told of.
std::optional<std::uint16_t> AddModel(const layout::ModelInfo& info, std::vector<HeldModel>& models) {
  const auto known =
      std::find_if(models.begin(), models.end(), [&](const HeldModel& each) { return each.fingerprint == info.fingerprint; });
  if (known == models.end()) {
    if (models.size() == std::numeric_limits<std::uint16_t>::max()) return std::nullopt;
    const Result<ModelSpec> spec = ModelSpec::FromCanonical({info.spec, info.spec_bytes});
    if (!spec) return std::nullopt;
    models.push_back({info.fingerprint, spec->model_id, spec->block_tokens});
    return static_cast<std::uint16_t>(models.size() - 1);
  }
  return static_cast<std::uint16_t>(known - models.begin());
}

// Of a slab of kvmd's host cache, which no client owns.
bool IsHostCache(const layout::RegionInfo& region) {
  return static_cast<layout::RegionState>(region.state) == layout::RegionState::kLive && region.client_id == 0;
}

// Grows with every change of the index or of the regions.
std::uint64_t Changes(const layout::RegistryHeader& header) {
  const layout::Counters& c = header.counters;
  std::uint64_t sum = header.region_changes.load(std::memory_order_relaxed);
  for (const auto* counter : {&c.published, &c.replaced, &c.retracted, &c.swept, &c.reaped, &c.evicted})
    sum += counter->load(std::memory_order_relaxed);
  return sum + 1;
}

}  // namespace

Status RegistryScan::Connect() {
  if (observer_ && observer_->registry().state() == layout::SegmentState::kLive && observer_->HeartbeatAge() < ctl::kHeartbeatLimit)
    return {};
  observer_.reset();
  Forget();
  Result<ctl::Observer> connected = ctl::Observer::Connect(socket_, kScanTimeout);
  if (!connected) return connected.error();
  observer_ = std::make_unique<ctl::Observer>(std::move(*connected));
  return {};
}

void RegistryScan::DeclareNew(ScanResult& out) {
  const RegistryView& registry = observer_->registry();
  for (std::uint32_t row = 0; row < registry.model_rows(); ++row) {
    layout::ModelInfo info;
    if (!registry.ReadModel(row, info) || info.state != 1 || declared_.contains(info.fingerprint)) continue;
    const Result<ModelSpec> spec = ModelSpec::FromCanonical({info.spec, info.spec_bytes});
    if (!spec) continue;
    const Result<Model> model = client_->DeclareModel(*spec, After(kScanTimeout));
    if (!model) continue;
    declared_.emplace(model->fingerprint, *model);
    out.new_models.emplace(model->fingerprint, *model);
  }
}

std::vector<RowUse> RegistryScan::ReadRows(const ScanPlan& plan, ScanResult& out) {
  const RegistryView& registry = observer_->registry();
  std::vector<RowUse> rows(registry.region_rows());
  for (std::uint32_t row = 0; row < registry.region_rows(); ++row) {
    layout::RegionInfo region;
    layout::ModelInfo model;
    if (!registry.ReadRegion(row, region) || !IsImportable(region) || !registry.ReadModel(region.model, model)) continue;
    RowUse& use = rows[row];
    const Shard shard{region.tp_rank, region.tp_size, region.pp_rank, region.pp_size, region.kv_group};
    if (IsInHostMemory(region)) {
      use.served_epoch = region.region_epoch;
      const BlockShape shape{model.fingerprint, shard, region.block_bytes};
      out.shapes.insert(shape);
      if (plan.stored && IsHostCache(region)) use.cached = shape;
    }
    if (!plan.held || !IsFirstShard(shard)) continue;
    const std::optional<std::uint16_t> number = AddModel(model, held_models_);
    if (!number) continue;
    use.held_epoch = region.region_epoch;
    use.model = *number;
    use.medium = IsInHostMemory(region) ? kCpuMedium : kGpuMedium;
  }
  return rows;
}

void RegistryScan::Forget() noexcept {
  index_.Forget();
  held_models_.clear();
  changes_ = 0;
}

Result<ScanResult> RegistryScan::Run(const ScanPlan& plan) {
  if (again_.exchange(false)) Forget();
  if (Status connected = Connect(); !connected) return connected.error();
  ScanResult out;
  DeclareNew(out);
  const RegistryView& registry = observer_->registry();
  const std::uint64_t changes = Changes(registry.header());
  if (changes == changes_ && !plan.all_unstored) return out;
  try {
    index_.Read(registry.index(), SlotVersions(registry), ReadRows(plan, out), plan, out);
    out.held.models = held_models_;
  } catch (...) {
    Forget();
    throw;
  }
  changes_ = index_.complete() ? changes : 0;
  return out;
}

}  // namespace kvm::mesh
