// A host cache that outlives its kvmd: chunks are restored as they are, blocks as the old registry's entries are read.
#include <algorithm>
#include <charconv>

#include "daemon/host_tier.h"
#include "daemon/steady_ms.h"

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
std::shared_ptr<TierWriter> HostTier::Resume(const Offerer& offerer, Domain& domain) {
  if (offerer.instance == 0 || offerer.pid == 0) return nullptr;
  const auto found = std::find_if(departed_.begin(), departed_.end(), [&](const std::shared_ptr<TierWriter>& writer) {
    return writer->instance == offerer.instance && writer->pid == offerer.pid && writer->uid == offerer.uid && writer->domain == &domain &&
           !writer->process->Ended();
  });
  if (found == departed_.end()) return nullptr;
  std::shared_ptr<TierWriter> writer = std::move(*found);
  departed_.erase(found);
  writer->client = offerer.client;
  writer->process.reset();
  writer->granted = 0;
  for (const auto& chunk : chunks_) {
    if (!chunk->WritableBy(*writer)) continue;
    writer->bytes += chunk->bytes();
    TierBlocks& blocks = chunk->group.blocks;
    for (std::uint32_t i = blocks.slots_per_chunk(); i-- > 0;) {
      const policy::Slot at = blocks.SlotAt(chunk->position, i);
      if (blocks[at].state == TierSlot::State::kExpired) blocks.Free(at);
    }
    host_.ChunkGranted(*chunk);
  }
  progress_ = true;
  return writer;
}

Status HostTier::CheckRoomFor(const TierGroup& group, std::uint64_t bytes) const {
  if (UsageOf(nullptr).bytes + bytes > config_.host_cache_bytes)
    return MakeError(Errc::kResourceExhausted, "the host cache is smaller than it was (--host-cache)");
  const std::uint64_t of_domain = UsageOf(&group.domain).bytes;
  if (config_.max_host_cache_per_domain != 0 && of_domain + bytes > config_.max_host_cache_per_domain)
    return MakeError(Errc::kResourceExhausted, "the domain's limit is smaller than it was (--max-host-cache-per-domain)");
  return {};
}

Status HostTier::Restore(Domain& domain, Region& region, const kvmwire::StoredChunk& stored,
                         const std::shared_ptr<WatchedProcess>& process) {
  TierGroup& group = GroupOf(domain, region);
  const auto refuse = [&](const Error& error) -> Status {
    DropGroupIfEmpty(group);
    return error;
  };
  if (group.blocks.slots_per_chunk() != region.info.block_count)
    return refuse(MakeError(Errc::kInvalidArgument, "chunks have another size than they had (--host-cache, --host-cache-chunk)"));
  if (Status room = CheckRoomFor(group, stored.size_bytes()); !room) return refuse(room.error());
  Result<std::unique_ptr<TierChunk>> reopened = TierChunk::Reopen(*this, group, region, stored);
  if (!reopened) return refuse(reopened.error());
  TierChunk& chunk = **reopened;
  if (stored.writable() && !process->Ended()) {
    const auto known = std::find_if(departed_.begin(), departed_.end(), [&](const std::shared_ptr<TierWriter>& writer) {
      return writer->process == process && writer->instance == stored.writer_instance() && writer->domain == &domain;
    });
    if (known != departed_.end()) {
      chunk.writer = *known;
    } else {
      chunk.writer = std::make_shared<TierWriter>();
      chunk.writer->uid = stored.writer_uid();
      chunk.writer->pid = stored.writer_pid();
      chunk.writer->instance = stored.writer_instance();
      chunk.writer->domain = &domain;
      chunk.writer->process = process;
      departed_.push_back(chunk.writer);
    }
  }
  chunk.used_ms = SteadyMs(now_);
  next_name_ = std::max(next_name_, NumberIn(region.descriptor.name()) + 1);
  ++group.chunks;
  restoring_.insert(&chunk);
  chunks_.push_back(std::move(*reopened));
  return {};
}

bool HostTier::RestoreEntry(Region& region, const IndexEntry& entry) {
  auto& chunk = *static_cast<TierChunk*>(region.keeper);
  TierBlocks& blocks = chunk.group.blocks;
  if (entry.block >= blocks.slots_per_chunk() || region.generations.Current(entry.block) != entry.generation) return false;
  const policy::Slot at = blocks.SlotAt(chunk.position, entry.block);
  const PublishRecord record{entry.key, entry.parent_lo, entry.generation, entry.block, entry.depth};
  if (blocks[at].state != TierSlot::State::kUnknown || !blocks.Restore(at, record)) return false;
  if (!chunk.PublishAgain(record)) {
    chunk.BeginWrite(entry.block);
    blocks.Free(at);
    return false;
  }
  restored_[&chunk.group].push_back(at);
  return true;
}

// How recently each was used is not known any more; parents come before what follows them.
void HostTier::UseRestored() {
  for (auto& [group, slots] : restored_) {
    TierBlocks& blocks = group->blocks;
    std::sort(slots.begin(), slots.end(), [&](policy::Slot a, policy::Slot b) { return blocks[a].record.depth < blocks[b].record.depth; });
    Use(*group, slots, false);
  }
  restored_.clear();
}

void HostTier::FinishRestore(Region& region) {
  auto& chunk = *static_cast<TierChunk*>(region.keeper);
  TierBlocks& blocks = chunk.group.blocks;
  const bool being_written = !chunk.abandoned() && chunk.writer->client == 0;
  for (std::uint32_t i = blocks.slots_per_chunk(); i-- > 0;) {
    const policy::Slot at = blocks.SlotAt(chunk.position, i);
    if (blocks[at].state != TierSlot::State::kUnknown) continue;
    // Stored, and not in the index when that was left.
    if (chunk.readable(i)) chunk.BeginWrite(i);
    being_written ? blocks.GiveUp(at) : blocks.Free(at);
  }
  restoring_.erase(&chunk);
  progress_ = true;
}

const TierWriter* HostTier::Describe(const Region& region, kvmwire::StoredChunk& stored) const {
  const auto& chunk = *static_cast<const TierChunk*>(region.keeper);
  stored.set_writer_uid(chunk.uid);
  stored.set_writable(chunk.writer != nullptr);
  if (chunk.writer) {
    stored.set_writer_pid(chunk.writer->pid);
    stored.set_writer_instance(chunk.writer->instance);
  }
  stored.set_size_bytes(chunk.bytes());
  stored.set_transparent_bytes(chunk.memory.transparent_huge_bytes());
  stored.set_reserved_huge(chunk.memory.reserved_huge_bytes() > 0);
  return chunk.writer.get();
}

}  // namespace kvm::daemon
