#include "client/kvctl/cli/registry_tables.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

std::optional<std::uint32_t> RowNumber(const std::string& text) {
  std::uint32_t row = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), row);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return row;
}

constexpr std::size_t kLeastFingerprintDigits = 6;

}  // namespace

std::string RegionEntry::name() const { return Printable(info.name); }

DeviceUuid RegionEntry::device() const noexcept {
  DeviceUuid device{};
  static_assert(sizeof(info.device_uuid) == sizeof(device));
  std::copy(std::begin(info.device_uuid), std::end(info.device_uuid), device.begin());
  return device;
}

std::vector<ModelEntry> ReadModels(const RegistryView& registry) {
  std::vector<ModelEntry> models;
  layout::ModelInfo info;
  for (std::uint32_t row = 0; row < registry.model_rows(); ++row) {
    if (!registry.ReadModel(row, info)) continue;
    Result<ModelSpec> spec = ModelSpec::FromCanonical({info.spec, info.spec_bytes});
    if (spec) models.push_back({row, info.fingerprint, std::move(*spec)});
  }
  return models;
}

std::vector<RegionEntry> ReadRegions(const RegistryView& registry) {
  std::vector<RegionEntry> regions;
  RegionEntry entry;
  for (entry.row = 0; entry.row < registry.region_rows(); ++entry.row) {
    if (registry.ReadRegion(entry.row, entry.info)) regions.push_back(entry);
  }
  return regions;
}

std::vector<RegionGroup> GroupByMemory(const std::vector<RegionEntry>& regions) {
  std::vector<RegionGroup> groups;
  for (const RegionEntry& region : regions) {
    const auto kind = static_cast<layout::HandleKind>(region.info.handle_kind);
    const auto same = [&](const RegionGroup& group) { return group.kind == kind && group.device == region.device(); };
    auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end()) group = groups.insert(groups.end(), {kind, region.device()});
    group->regions++;
    group->size_bytes += region.size_bytes();
    group->entries += region.info.live_entries;
  }
  return groups;
}

const ModelEntry* FindModel(const std::vector<ModelEntry>& models, std::uint32_t row) noexcept {
  const auto found = std::find_if(models.begin(), models.end(), [&](const ModelEntry& model) { return model.row == row; });
  return found == models.end() ? nullptr : &*found;
}

const RegionEntry* FindRegion(const std::vector<RegionEntry>& regions, const IndexEntry& entry) noexcept {
  const auto found = std::find_if(regions.begin(), regions.end(), [&](const RegionEntry& region) {
    return region.row == entry.region && region.info.region_epoch == entry.region_epoch;
  });
  return found == regions.end() ? nullptr : &*found;
}

Result<std::vector<ModelEntry>> SelectModels(const std::vector<ModelEntry>& models, const std::string& text) {
  std::vector<ModelEntry> selected;
  std::set<std::string> known;
  const std::optional<std::uint32_t> row = RowNumber(text);
  for (const ModelEntry& model : models) {
    const bool by_fingerprint = text.size() >= kLeastFingerprintDigits && model.fingerprint.ToHex().starts_with(text);
    if (row == model.row || model.spec.model_id == text || by_fingerprint) selected.push_back(model);
    known.insert(Printable(model.spec.model_id));
  }
  if (!selected.empty()) return selected;
  return MakeError(Errc::kNotFound,
                   "no declared model is named " + text +
                       (known.empty() ? "; no model is declared at all" : "; declared: " + JoinWithCommas({known.begin(), known.end()})));
}

Result<std::vector<std::uint32_t>> SelectRegions(const std::vector<RegionEntry>& regions, const std::string& text) {
  std::vector<std::uint32_t> rows;
  const std::optional<std::uint32_t> row = RowNumber(text);
  for (const RegionEntry& region : regions) {
    if (row == region.row || region.info.name == text) rows.push_back(region.row);
  }
  if (rows.empty()) return MakeError(Errc::kNotFound, "no region is named " + text + "; see kvctl regions");
  return rows;
}

std::string_view RegionStateName(layout::RegionState state) noexcept {
  switch (state) {
    case layout::RegionState::kFree: return "free";
    case layout::RegionState::kLive: return "live";
    case layout::RegionState::kWithdrawing: return "withdrawing";
    case layout::RegionState::kOrphan: return "orphan";
  }
  return "unknown";
}

std::string_view HandleKindName(layout::HandleKind kind) noexcept {
  switch (kind) {
    case layout::HandleKind::kHostMemfd: return "host_memfd";
    case layout::HandleKind::kCudaIpc: return "cuda_ipc";
    case layout::HandleKind::kCudaVmmFd: return "cuda_vmm_fd";
  }
  return "unknown";
}

DeviceUuid DeviceOf(const std::string& bytes) noexcept {
  DeviceUuid device{};
  if (bytes.size() == device.size()) std::copy(bytes.begin(), bytes.end(), device.begin());
  return device;
}

std::string DeviceName(const DeviceUuid& device) { return device == kHostMemory ? "host" : FormatUuid(device); }

std::string_view SegmentStateName(layout::SegmentState state) noexcept {
  switch (state) {
    case layout::SegmentState::kLive: return "live";
    case layout::SegmentState::kSuperseded: return "superseded";
    case layout::SegmentState::kClosed: return "closed";
  }
  return "unknown";
}

std::string ShardName(const Shard& shard) {
  std::string name;
  const auto add = [&](const std::string& part) { name += (name.empty() ? "" : " ") + part; };
  if (shard.tp_size > 1) add("tp " + std::to_string(shard.tp_rank) + "/" + std::to_string(shard.tp_size));
  if (shard.pp_size > 1) add("pp " + std::to_string(shard.pp_rank) + "/" + std::to_string(shard.pp_size));
  if (shard.kv_group > 0) add("group " + std::to_string(shard.kv_group));
  return name.empty() ? "whole" : name;
}

std::string ShortFingerprint(const Fingerprint& fingerprint) { return fingerprint.ToHex().substr(0, 12); }

}  // namespace kvm::ctl
