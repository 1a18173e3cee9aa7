#include "daemon/broker/status/memory_groups.h"

#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "daemon/system/work_meter.h"

namespace kvm::daemon {

std::vector<kvmwire::MemoryGroup> GroupMemory(Domain& domain) {
  using Key = std::tuple<std::uint32_t, std::uint32_t, std::string_view, bool, bool>;
  std::map<Key, std::size_t> place;
  std::vector<kvmwire::MemoryGroup> groups;
  domain.ForEachRegion([&](const Region& region) {
    Spend(2);
    if (region.phase() != RegionPhase::kLive && region.phase() != RegionPhase::kOrphan) return;
    const layout::RegionInfo& info = region.info;
    const std::string_view device(reinterpret_cast<const char*>(info.device_uuid), sizeof(info.device_uuid));
    const bool cache = info.client_id == kNoClient, orphan = region.phase() == RegionPhase::kOrphan;
    const auto [found, is_new] = place.try_emplace({info.model, info.handle_kind, device, cache, orphan}, groups.size());
    if (is_new) {
      kvmwire::MemoryGroup& group = groups.emplace_back();
      group.set_model_id(domain.SpecOf(region).model_id);
      group.set_fingerprint(region.descriptor.fingerprint());
      group.set_handle_kind(info.handle_kind);
      if (device.find_first_not_of('\0') != device.npos) group.set_device_uuid(std::string(device));
      group.set_host_cache(cache);
      group.set_orphan(orphan);
    }
    kvmwire::MemoryGroup& group = groups[found->second];
    group.set_regions(group.regions() + 1);
    group.set_blocks(group.blocks() + info.block_count);
    group.set_bytes(group.bytes() + std::uint64_t{info.block_count} * info.block_bytes);
    group.set_entries(group.entries() + region.entries);
  });
  return groups;
}

}  // namespace kvm::daemon
