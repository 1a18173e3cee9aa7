#include "client/peers.h"

#include <utility>

namespace kvm {
namespace {

// A copy of `snapshot` without the mappings that `drop` picks; the dropped ones go to `dropped`, so
// that they are released outside the table's lock. Null stays null.
template <class Pick>
std::shared_ptr<const PeerSnapshot> Without(const std::shared_ptr<const PeerSnapshot>& snapshot, Pick drop,
                                            std::vector<std::shared_ptr<PeerMapping>>& dropped) {
  if (!snapshot) return snapshot;
  auto next = std::make_shared<PeerSnapshot>(*snapshot);
  bool changed = false;
  for (PeerRegion& region : next->by_row) {
    if (!region.mapping || !drop(*region.mapping)) continue;
    dropped.push_back(std::move(region.mapping));
    region = PeerRegion{};
    changed = true;
  }
  return changed ? std::shared_ptr<const PeerSnapshot>(std::move(next)) : snapshot;
}

}  // namespace

PeerMapping::PeerMapping(Geometry geometry_, PeerGenerations generations_, std::shared_ptr<MemoryBackend> backend_,
                         std::shared_ptr<PeerMemory> memory_, std::uint64_t identity_, bool own_)
    : geometry(std::move(geometry_)),
      generations(std::move(generations_)),
      backend(std::move(backend_)),
      memory(std::move(memory_)),
      identity(identity_),
      own(own_) {}

PeerMapping::~PeerMapping() {
  if (release_action_) release_action_();
}

Result<std::shared_ptr<const CopyPlan>> PeerMapping::PlanTo(const Geometry& destination) const {
  std::lock_guard lock(mutex_);
  for (const auto& [known, plan] : plans_) {
    if (known == destination) return plan;
  }
  Result<CopyPlan> plan = MakeCopyPlan(geometry, destination);
  if (!plan) return plan.error();
  plans_.emplace_back(destination, std::make_shared<const CopyPlan>(std::move(*plan)));
  return plans_.back().second;
}

void PeerMapping::SetReleaseAction(std::function<void()> action) {
  std::lock_guard lock(mutex_);
  release_action_ = std::move(action);
}

PeerTable::Snapshots PeerTable::Get() const {
  std::lock_guard lock(mutex_);
  return {current_, previous_};
}

void PeerTable::StartEpoch(RegistryView registry) {
  auto next = std::make_shared<PeerSnapshot>();
  next->by_row.resize(registry.region_rows());
  next->registry = std::move(registry);
  std::shared_ptr<const PeerSnapshot> released;
  std::lock_guard lock(mutex_);
  released = std::exchange(previous_, std::exchange(current_, std::move(next)));
}

void PeerTable::DropPrevious() {
  std::shared_ptr<const PeerSnapshot> released;
  std::lock_guard lock(mutex_);
  released = std::exchange(previous_, nullptr);
}

void PeerTable::Add(std::uint32_t row, std::uint32_t region_epoch, std::shared_ptr<PeerMapping> mapping) {
  std::shared_ptr<const PeerSnapshot> released;
  std::lock_guard lock(mutex_);
  if (!current_ || row >= current_->by_row.size()) return;
  auto next = std::make_shared<PeerSnapshot>(*current_);
  next->by_row[row] = PeerRegion{region_epoch, std::move(mapping)};
  released = std::exchange(current_, std::move(next));
}

void PeerTable::Remove(std::uint32_t row, std::uint32_t region_epoch, std::function<void()> action) {
  std::vector<std::shared_ptr<PeerMapping>> dropped;
  std::shared_ptr<PeerMapping> mapping;
  {
    std::lock_guard lock(mutex_);
    if (current_ && row < current_->by_row.size() && current_->by_row[row].region_epoch == region_epoch) {
      mapping = current_->by_row[row].mapping;
    }
    const auto same = [&](const PeerMapping& other) { return &other == mapping.get(); };
    current_ = Without(current_, same, dropped);
    previous_ = Without(previous_, same, dropped);
  }
  if (!mapping) {
    if (action) action();
    return;
  }
  mapping->SetReleaseAction(std::move(action));
}

void PeerTable::RemoveByIdentity(std::uint64_t identity) {
  std::vector<std::shared_ptr<PeerMapping>> dropped;
  std::lock_guard lock(mutex_);
  const auto same = [&](const PeerMapping& other) { return other.identity == identity; };
  current_ = Without(current_, same, dropped);
  previous_ = Without(previous_, same, dropped);
}

std::shared_ptr<PeerMapping> PeerTable::FindByIdentity(std::uint64_t identity) const {
  std::lock_guard lock(mutex_);
  for (const auto& snapshot : {current_, previous_}) {
    if (!snapshot) continue;
    for (const PeerRegion& region : snapshot->by_row) {
      if (region.mapping && region.mapping->identity == identity) return region.mapping;
    }
  }
  return nullptr;
}

std::size_t PeerTable::mapped_regions() const {
  const Snapshots snapshots = Get();
  std::size_t mapped = 0;
  if (snapshots.current) {
    for (const PeerRegion& region : snapshots.current->by_row) mapped += region.mapping != nullptr && !region.mapping->own;
  }
  return mapped;
}

}  // namespace kvm
