#include "client/peers/peers.h"

#include <algorithm>
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

PeerPayload::~PeerPayload() {
  for (std::shared_ptr<PeerMemory>& memory : memories) memory.reset();
  if (released) released();
}

PeerMapping::PeerMapping(Parts parts)
    : geometry(std::move(parts.geometry)),
      generations(std::move(parts.generations)),
      name(std::move(parts.name)),
      content(std::move(parts.content)),
      identity(parts.identity),
      devices(parts.devices),
      own(parts.own),
      kept(parts.kept),
      device_uuid(parts.device_uuid),
      payload_(std::move(parts.payload)) {
  for (std::size_t device = 0; device < paths_.size(); ++device) {
    const PeerMemory* memory = payload_ ? payload_->memories[device].get() : nullptr;
    paths_[device].store(memory == nullptr ? kNone : static_cast<std::uint8_t>(memory->path()), std::memory_order_relaxed);
  }
}

std::shared_ptr<const PeerPayload> PeerMapping::payload() const {
  MutexLock lock(mutex_);
  return payload_;
}

void PeerMapping::DropPaths() const noexcept {
  for (std::atomic<std::uint8_t>& path : paths_) path.store(kNone, std::memory_order_relaxed);
}

void PeerMapping::Retire(std::function<void()> released) {
  DropPaths();
  std::shared_ptr<PeerPayload> payload;
  {
    MutexLock lock(mutex_);
    payload = std::exchange(payload_, nullptr);
  }
  if (payload) {
    // Set while this thread holds a reference, so that the thread that drops the last reference
    // sees it.
    payload->released = std::move(released);
  } else if (released) {
    released();
  }
}

Result<std::shared_ptr<const CopyPlan>> PeerMapping::PlanTo(const Geometry& destination) const {
  MutexLock lock(mutex_);
  for (const auto& [known, plan] : plans_) {
    if (known == destination) return plan;
  }
  Result<CopyPlan> plan = MakeCopyPlan(geometry, destination);
  if (!plan) return plan.error();
  plans_.emplace_back(destination, std::make_shared<const CopyPlan>(std::move(*plan)));
  return plans_.back().second;
}

PeerTable::Snapshots PeerTable::Get() const {
  MutexLock lock(mutex_);
  return {current_, previous_};
}

std::uint64_t PeerTable::StartConnection(RegistryView registry) {
  auto next = std::make_shared<PeerSnapshot>();
  next->by_row.resize(registry.region_rows());
  next->registry = std::move(registry);
  std::shared_ptr<const PeerSnapshot> released;
  MutexLock lock(mutex_);
  released = std::exchange(previous_, std::exchange(current_, std::move(next)));
  return ++connection_;
}

void PeerTable::DropPrevious() {
  std::vector<std::shared_ptr<PeerMapping>> gone;  // mappings of owners that have not reconnected
  {
    MutexLock lock(mutex_);
    const std::shared_ptr<const PeerSnapshot> before = std::exchange(previous_, nullptr);
    if (!before || !current_) return;
    for (const PeerRegion& region : before->by_row) {
      const auto same = [&](const PeerRegion& other) { return other.mapping == region.mapping; };
      if (region.mapping && !region.mapping->own && std::none_of(current_->by_row.begin(), current_->by_row.end(), same))
        gone.push_back(region.mapping);
    }
  }
  for (const std::shared_ptr<PeerMapping>& mapping : gone) mapping->Retire(nullptr);
}

bool PeerTable::Knows(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch) const {
  MutexLock lock(mutex_);
  return connection == connection_ && current_ && row < current_->by_row.size() && current_->by_row[row].mapping &&
         current_->by_row[row].region_epoch == region_epoch;
}

void PeerTable::Add(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, const std::shared_ptr<PeerMapping>& mapping) {
  // An older mapping of the region, if it is mapped again for more devices
  std::shared_ptr<PeerMapping> replaced;
  {
    MutexLock lock(mutex_);
    if (connection != connection_ || row >= current_->by_row.size()) return;
    // This process has adopted the region while the mapper still worked on its announcement: the
    // own mapping stays.
    const PeerRegion& known = current_->by_row[row];
    if (known.mapping && known.mapping->own && !mapping->own && known.region_epoch == region_epoch) return;
    auto next = std::make_shared<PeerSnapshot>(*current_);
    replaced = std::exchange(next->by_row[row], PeerRegion{region_epoch, mapping}).mapping;
    current_ = std::move(next);
  }
  if (replaced && replaced != mapping) replaced->Retire(nullptr);
}

void PeerTable::Remove(std::uint64_t connection, std::uint32_t row, std::uint32_t region_epoch, std::function<void()> released) {
  std::vector<std::shared_ptr<PeerMapping>> dropped;
  {
    MutexLock lock(mutex_);
    std::shared_ptr<PeerMapping> mapping;
    if (connection == connection_ && row < current_->by_row.size() && current_->by_row[row].region_epoch == region_epoch) {
      mapping = current_->by_row[row].mapping;
    }
    if (mapping) {
      auto next = std::make_shared<PeerSnapshot>(*current_);
      next->by_row[row] = PeerRegion{};
      current_ = std::move(next);
      const bool elsewhere =
          std::any_of(current_->by_row.begin(), current_->by_row.end(), [&](const PeerRegion& other) { return other.mapping == mapping; });
      if (!mapping->own && !elsewhere) {
        previous_ = Without(
            previous_, [&](const PeerMapping& other) { return &other == mapping.get(); }, dropped);
        dropped.push_back(std::move(mapping));
      }
    }
  }
  // Runs `released` when the last of those payloads is gone.
  const std::shared_ptr<void> token(nullptr, [released = std::move(released)](void*) {
    if (released) released();
  });
  for (const std::shared_ptr<PeerMapping>& other : dropped) other->Retire([token] {});
}

void PeerTable::RemoveByIdentity(const FileId& identity) {
  std::vector<std::shared_ptr<PeerMapping>> dropped;
  {
    MutexLock lock(mutex_);
    const auto same = [&](const PeerMapping& other) { return other.identity == identity; };
    current_ = Without(current_, same, dropped);
    previous_ = Without(previous_, same, dropped);
  }
  for (const std::shared_ptr<PeerMapping>& mapping : dropped) mapping->Retire(nullptr);
}

std::shared_ptr<PeerMapping> PeerTable::FindAgain(std::uint32_t row, std::uint32_t region_epoch, const std::string& name,
                                                  const FileId& identity) const {
  const auto same = [&](const PeerRegion& region) {
    return region.mapping && region.mapping->identity == identity && region.mapping->name == name;
  };
  MutexLock lock(mutex_);
  if (current_) {
    if (row < current_->by_row.size() && current_->by_row[row].region_epoch == region_epoch && same(current_->by_row[row]))
      return current_->by_row[row].mapping;
    // Another row uses the mapping. Each region gets a mapping of its own, so that the end of one
    // does not end the other.
    if (std::any_of(current_->by_row.begin(), current_->by_row.end(), same)) return nullptr;
  }
  if (!previous_) return nullptr;
  const auto found = std::find_if(previous_->by_row.begin(), previous_->by_row.end(), same);
  return found == previous_->by_row.end() ? nullptr : found->mapping;
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
