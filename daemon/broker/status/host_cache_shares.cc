#include "daemon/broker/status/host_cache_shares.h"

#include <cstddef>
#include <map>
#include <tuple>

#include "daemon/host_cache/slab.h"
#include "daemon/system/work_meter.h"

namespace kvm::daemon {

std::vector<kvmwire::HostCacheShare> ShareHostCache(Domain& domain) {
  using Key = std::tuple<std::uint32_t, ClientId, std::uint32_t, std::uint32_t>;
  std::map<Key, std::size_t> place;
  std::vector<kvmwire::HostCacheShare> shares;
  domain.ForEachRegion([&](const Region& region) {
    Spend(2);
    if (region.filler == nullptr) return;
    const Slab& slab = static_cast<const Slab&>(*region.filler);
    const SlabWriter* const writer = slab.writer.get();
    const ClientId client = writer == nullptr ? 0 : writer->client;
    const std::uint32_t pid = writer == nullptr ? 0 : writer->pid;
    const auto [found, is_new] = place.try_emplace({slab.uid, client, pid, region.info.model}, shares.size());
    if (is_new) {
      kvmwire::HostCacheShare& share = shares.emplace_back();
      share.set_uid(slab.uid);
      share.set_client_id(client);
      share.set_pid(pid);
      share.set_model_id(domain.SpecOf(region).model_id);
      share.set_fingerprint(region.descriptor.fingerprint());
    }
    kvmwire::HostCacheShare& share = shares[found->second];
    share.set_slabs(share.slabs() + 1);
    share.set_bytes(share.bytes() + slab.bytes());
    share.set_blocks(share.blocks() + region.entries);
    share.set_used_bytes(share.used_bytes() + region.entries * region.info.block_bytes);
  });
  return shares;
}

}  // namespace kvm::daemon
