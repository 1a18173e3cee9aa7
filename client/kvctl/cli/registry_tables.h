// The model and region tables of a registry as lists, and how operators name their rows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/device.h"
#include "kvm/model_spec.h"
#include "proto/shm/registry_view.h"

namespace kvm::ctl {

struct ModelEntry {
  std::uint32_t row = 0;
  Fingerprint fingerprint;
  ModelSpec spec;
};

struct RegionEntry {
  std::uint32_t row = 0;
  layout::RegionInfo info{};

  Shard shard() const noexcept { return {info.tp_rank, info.tp_size, info.pp_rank, info.pp_size, info.kv_group}; }
  layout::RegionState state() const noexcept { return static_cast<layout::RegionState>(info.state); }
  std::string name() const;            // safe to print
  DeviceUuid device() const noexcept;  // zeros: host memory
  std::uint64_t size_bytes() const noexcept { return std::uint64_t{info.block_count} * info.block_bytes; }
};

// Rows that are in use. Rows that can't be read consistently are left out.
std::vector<ModelEntry> ReadModels(const RegistryView& registry);
std::vector<RegionEntry> ReadRegions(const RegistryView& registry);

const ModelEntry* FindModel(const std::vector<ModelEntry>& models, std::uint32_t row) noexcept;
// The region in which the block of `entry` lies; null if that region has gone.
const RegionEntry* FindRegion(const std::vector<RegionEntry>& regions, const IndexEntry& entry) noexcept;

// A sum over the regions in memory of one kind on one device.
struct RegionGroup {
  layout::HandleKind kind = layout::HandleKind::kHostMemfd;
  DeviceUuid device{};
  std::uint64_t regions = 0, size_bytes = 0, entries = 0;
};
std::vector<RegionGroup> GroupByMemory(const std::vector<RegionEntry>& regions);

// Models named by `text`: a row number, a model_id, or at least six digits of a fingerprint.
// kNotFound: there is none; the message lists the declared models.
[[nodiscard]] Result<std::vector<ModelEntry>> SelectModels(const std::vector<ModelEntry>& models, const std::string& text);
// Rows of the regions named by `text`: a row number or a name. kNotFound.
[[nodiscard]] Result<std::vector<std::uint32_t>> SelectRegions(const std::vector<RegionEntry>& regions, const std::string& text);

std::string_view RegionStateName(layout::RegionState state) noexcept;
std::string_view HandleKindName(layout::HandleKind kind) noexcept;
std::string DeviceName(const DeviceUuid& device);  // "host", "GPU-8f7a…"
// Of a message's field; host memory, if it is not 16 bytes.
DeviceUuid DeviceOf(const std::string& bytes) noexcept;
std::string_view SegmentStateName(layout::SegmentState state) noexcept;
// "tp 0/2 pp 0/1 group 0", without parts of size 1 and group 0
std::string ShardName(const Shard& shard);
std::string ShortFingerprint(const Fingerprint& fingerprint);  // 12 digits

}  // namespace kvm::ctl
