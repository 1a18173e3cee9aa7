// A host cache that outlives its kvmd: slabs are restored as they are, blocks as the old registry's entries are read.
#include <algorithm>
#include <charconv>

#include "daemon/host_cache/host_cache.h"
#include "daemon/system/steady_ms.h"

namespace kvm::daemon {
namespace {

constexpr std::string_view kNamePrefix = "host-cache-";

// N of "host-cache-N"; 0 of others.
std::uint64_t NumberIn(std::string_view name) {
  std::uint64_t number = 0;
  if (name.starts_with(kNamePrefix)) std::from_chars(name.data() + kNamePrefix.size(), name.data() + name.size(), number);
  return number;
}

}  // namespace

// The same client over a new connection. Its copies are made and its offers are sent by one thread, so whatever it was
// copying is done by the time of the first offer.
std::shared_ptr<SlabWriter> HostCache::Resume(const Offerer& offerer, Domain& domain) {
  if (offerer.instance == 0 || offerer.pid == 0) return nullptr;
  const auto found = std::find_if(departed_.begin(), departed_.end(), [&](const std::shared_ptr<SlabWriter>& writer) {
    return writer->instance == offerer.instance && writer->pid == offerer.pid && writer->uid == offerer.uid && writer->domain == &domain &&
           !writer->process->Ended();
  });
  if (found == departed_.end()) return nullptr;
  std::shared_ptr<SlabWriter> writer = std::move(*found);
  departed_.erase(found);
  writer->client = offerer.client;
  writer->process.reset();
  writer->granted = 0;
  for (const auto& slab : slabs_) {
    if (!slab->WritableBy(*writer)) continue;
    writer->bytes += slab->bytes();
    SlotTable& blocks = slab->group.blocks;
    for (std::uint32_t i = blocks.slots_per_slab(); i-- > 0;) {
      const policy::Slot at = blocks.SlotAt(slab->position, i);
      if (blocks[at].state == CacheSlot::State::kExpired) blocks.Free(at);
    }
    host_.SlabGranted(*slab);
  }
  progress_ = true;
  return writer;
}

Status HostCache::CheckRoomFor(const SlabClass& group, std::uint64_t bytes) const {
  if (UsageOf(nullptr).bytes + bytes > config_.host_cache_bytes)
    return MakeError(Errc::kResourceExhausted, "the host cache is smaller than it was (--host-cache)");
  const std::uint64_t of_domain = UsageOf(&group.domain).bytes;
  if (config_.max_host_cache_per_domain != 0 && of_domain + bytes > config_.max_host_cache_per_domain)
    return MakeError(Errc::kResourceExhausted, "the domain's limit is smaller than it was (--max-host-cache-per-domain)");
  return {};
}

Status HostCache::Restore(Domain& domain, Region& region, const kvmwire::StoredSlab& stored,
                          const std::shared_ptr<WatchedProcess>& process) {
  SlabClass& group = GroupOf(domain, region);
  const auto refuse = [&](const Error& error) -> Status {
    DropGroupIfEmpty(group);
    return error;
  };
  if (group.blocks.slots_per_slab() != region.info.block_count)
    return refuse(MakeError(Errc::kInvalidArgument, "slabs have another size than they had (--host-cache, --host-cache-slab)"));
  if (Status room = CheckRoomFor(group, stored.size_bytes()); !room) return refuse(room.error());
  Result<std::unique_ptr<Slab>> reopened = Slab::Reopen(*this, group, region, stored);
  if (!reopened) return refuse(reopened.error());
  Slab& slab = **reopened;
  if (stored.writable() && !process->Ended()) {
    const auto known = std::find_if(departed_.begin(), departed_.end(), [&](const std::shared_ptr<SlabWriter>& writer) {
      return writer->process == process && writer->instance == stored.writer_instance() && writer->domain == &domain;
    });
    if (known != departed_.end()) {
      slab.writer = *known;
    } else {
      slab.writer = std::make_shared<SlabWriter>();
      slab.writer->uid = stored.writer_uid();
      slab.writer->pid = stored.writer_pid();
      slab.writer->instance = stored.writer_instance();
      slab.writer->domain = &domain;
      slab.writer->process = process;
      departed_.push_back(slab.writer);
    }
  }
  slab.used_ms = SteadyMs(now_);
  next_name_ = std::max(next_name_, NumberIn(region.descriptor.name()) + 1);
  ++group.slabs;
  restoring_.insert(&slab);
  slabs_.push_back(std::move(*reopened));
  return {};
}

bool HostCache::RestoreEntry(Region& region, const IndexEntry& entry) {
  auto& slab = *static_cast<Slab*>(region.filler);
  SlotTable& blocks = slab.group.blocks;
  if (entry.block >= blocks.slots_per_slab() || region.generations.Current(entry.block) != entry.generation) return false;
  const policy::Slot at = blocks.SlotAt(slab.position, entry.block);
  const PublishRecord record{entry.key, entry.parent_lo, entry.generation, entry.block, entry.depth};
  if (blocks[at].state != CacheSlot::State::kUnknown || !blocks.Restore(at, record)) return false;
  if (!slab.PublishAgain(record)) {
    slab.BeginWrite(entry.block);
    blocks.Free(at);
    return false;
  }
  restored_[&slab.group].push_back(at);
  return true;
}

// How recently each was used is not known any more; parents come before what follows them.
void HostCache::UseRestored() {
  for (auto& [group, slots] : restored_) {
    SlotTable& blocks = group->blocks;
    std::sort(slots.begin(), slots.end(), [&](policy::Slot a, policy::Slot b) { return blocks[a].record.depth < blocks[b].record.depth; });
    Use(*group, slots, false);
  }
  restored_.clear();
}

void HostCache::FinishRestore(Region& region) {
  auto& slab = *static_cast<Slab*>(region.filler);
  SlotTable& blocks = slab.group.blocks;
  const bool being_written = !slab.abandoned() && slab.writer->client == 0;
  for (std::uint32_t i = blocks.slots_per_slab(); i-- > 0;) {
    const policy::Slot at = blocks.SlotAt(slab.position, i);
    if (blocks[at].state != CacheSlot::State::kUnknown) continue;
    // Stored, and not in the index when that was left.
    if (slab.readable(i)) slab.BeginWrite(i);
    being_written ? blocks.GiveUp(at) : blocks.Free(at);
  }
  restoring_.erase(&slab);
  progress_ = true;
}

const SlabWriter* HostCache::Describe(const Region& region, kvmwire::StoredSlab& stored) const {
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
