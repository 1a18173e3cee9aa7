#include "daemon/host_cache/host_cache_restore.h"

#include <algorithm>

#include "daemon/system/steady_ms.h"

namespace kvm::daemon {

Status HostCacheRestore::Restore(Domain& domain, Region& region, const kvmwire::StoredSlab& stored,
                                 const std::shared_ptr<WatchedProcess>& process, SteadyTime now) {
  SlabClass& group = pool_.ClassOf(domain, region);
  const auto refuse = [&](const Error& error) -> Status {
    pool_.DropIfEmpty(group);
    return error;
  };
  if (group.blocks.slots_per_slab() != region.info.block_count)
    return refuse(MakeError(Errc::kInvalidArgument, "slabs have another size than they had (--host-cache, --host-cache-slab)"));
  if (domain.config().zero_on_free && stored.reserved_huge())
    return refuse(MakeError(Errc::kUnsupported, "a slab on reserved huge pages can't be zeroed (zero-on-free)"));
  if (Status room = quota_.CheckRestored(group, group.Cost(stored.size_bytes())); !room) return refuse(room.error());
  Result<std::unique_ptr<Slab>> reopened = Slab::Reopen(pool_, group, region, stored);
  if (!reopened) return refuse(reopened.error());
  Slab& slab = pool_.Add(std::move(*reopened));
  ++group.slabs;
  slab.restoring = true;
  slab.used_ms = SteadyMs(now);
  if (stored.writable() && !process->Ended()) slab.writer = writers_.OfRestored(domain, stored, process);
  allocator_.Avoid(region.descriptor.name());
  return {};
}

bool HostCacheRestore::RestoreEntry(Region& region, const IndexEntry& entry) {
  auto& slab = *static_cast<Slab*>(region.filler);
  SlotTable& blocks = slab.group.blocks;
  if (entry.block >= blocks.slots_per_slab() || region.generations.Current(entry.block) != entry.generation) return false;
  const policy::Slot at = blocks.SlotAt(slab.position, entry.block);
  const PublishRecord record{entry.key, entry.parent_lo, entry.generation, entry.block, entry.depth};
  if (blocks[at].state != CacheSlot::State::kUnknown || !blocks.Restore(at, record)) return false;
  if (!slab.PublishAgain(record)) {
    slab.BeginWrite(entry.block);
    slab.FreeSlot(entry.block);
    return false;
  }
  restored_[&slab.group].push_back(at);
  return true;
}

// The times of use are lost; parents are told before the blocks that follow them.
void HostCacheRestore::UseRestored(SteadyTime now) {
  for (auto& [group, slots] : restored_) {
    SlotTable& blocks = group->blocks;
    std::sort(slots.begin(), slots.end(), [&](policy::Slot a, policy::Slot b) { return blocks[a].record.depth < blocks[b].record.depth; });
    pool_.Use(*group, slots, false, now);
  }
  restored_.clear();
}

void HostCacheRestore::FinishRestore(Region& region) {
  auto& slab = *static_cast<Slab*>(region.filler);
  SlotTable& blocks = slab.group.blocks;
  const bool being_written = !slab.abandoned() && slab.writer->client == 0;
  for (std::uint32_t i = blocks.slots_per_slab(); i-- > 0;) {
    const policy::Slot at = blocks.SlotAt(slab.position, i);
    if (blocks[at].state != CacheSlot::State::kUnknown) continue;
    // The block is stored, but was not in the old index.
    if (slab.readable(i)) slab.BeginWrite(i);
    being_written ? blocks.GiveUp(at) : slab.FreeSlot(i);
  }
  slab.restoring = false;
  pool_.NoteProgress();
}

const SlabWriter* HostCacheRestore::Describe(const Region& region, kvmwire::StoredSlab& stored) {
  const auto& slab = *static_cast<const Slab*>(region.filler);
  stored.set_writer_uid(slab.uid);
  stored.set_writable(slab.writer != nullptr);
  if (slab.writer) {
    stored.set_writer_pid(slab.writer->pid);
    stored.set_writer_instance(slab.writer->instance);
  }
  stored.set_size_bytes(slab.bytes());
  stored.set_transparent_bytes(slab.memory.transparent_huge_bytes());
  stored.set_reserved_huge(slab.memory.reserved_huge_bytes() > 0);
  return slab.writer.get();
}

}  // namespace kvm::daemon
