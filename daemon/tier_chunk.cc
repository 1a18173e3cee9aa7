#include "daemon/tier_chunk.h"

#include <fcntl.h>
#include <unistd.h>

#include "proto/fault_point.h"
#include "proto/region_descriptor.h"

namespace kvm::daemon {

Result<std::unique_ptr<TierChunk>> TierChunk::Create(TierObserver& observer, std::string name, TierGroup& group) {
  std::unique_ptr<TierChunk> chunk(new TierChunk(observer, std::move(name), group));
  Result<ChunkMemory> memory = ChunkMemory::Create(chunk->name_, group.kind.block_bytes * group.blocks.slots_per_chunk());
  if (!memory) return memory.error();
  chunk->memory = std::move(*memory);
  return chunk;
}

Status TierChunk::Open(std::uint32_t its_position) {
  const std::uint32_t slots = group.blocks.slots_per_chunk();
  // Granted memory, though nobody is ever given it to write: a sealed table could not be written by the next kvmd.
  const std::size_t table_bytes = GenerationTableBytes(slots, group.kind.checksums);
  Result<UniqueFd> table_fd = CreateGrantable("kvm:" + name_ + ":generations", table_bytes);
  if (!table_fd) return table_fd.error();
  Result<OwnedMemory> table = OwnedMemory::Take(std::move(*table_fd), table_bytes);
  if (!table) return table.error();
  generation_memory_ = std::move(*table);
  generations_ = GenerationWriter::Format({generation_memory_.data(), generation_memory_.size()}, slots, group.kind.checksums);

  kvmwire::RegionDescriptor descriptor;
  descriptor.set_name(name_);
  descriptor.set_fingerprint(group.fingerprint);
  for (const std::uint32_t part : group.shard) descriptor.add_shard(part);
  descriptor.set_handle_kind(static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd));
  descriptor.add_segments()->set_size_bytes(group.kind.block_bytes * slots);
  SetGeometry(Geometry::Contiguous(slots, group.kind.block_bytes), descriptor);
  std::vector<UniqueFd> fds;
  for (const int fd : {generation_memory_.fd(), memory.writable_fd()}) {
    fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!fds.back()) return SystemError("duplicate a chunk's descriptor");
  }
  const Owner kvmd{kNoClient, static_cast<std::uint32_t>(::getpid()), ::geteuid()};
  Result<std::unique_ptr<Region>> prepared = group.domain.PrepareRegion(kNoClient, std::move(descriptor), std::move(fds));
  if (!prepared) return prepared.error();
  Result<Region*> added = group.domain.AddRegion(kvmd, std::move(*prepared));
  if (!added) return added.error();
  region = *added;
  region->keeper = this;
  position = its_position;
  return {};
}

Result<std::unique_ptr<TierChunk>> TierChunk::Reopen(TierObserver& observer, TierGroup& group, Region& region,
                                                     const kvmwire::StoredChunk& stored) {
  std::unique_ptr<TierChunk> chunk(new TierChunk(observer, region.descriptor.name(), group));
  UniqueFd fds[2];
  for (int i = 0; i < 2; ++i) {
    fds[i].Reset(::fcntl(region.fds[static_cast<std::size_t>(i)].get(), F_DUPFD_CLOEXEC, 0));
    if (!fds[i]) return SystemError("duplicate a chunk's descriptor");
  }
  const std::uint32_t slots = region.info.block_count;
  Result<OwnedMemory> table = OwnedMemory::Take(std::move(fds[0]), GenerationTableBytes(slots, group.kind.checksums));
  if (!table) return table.error();
  chunk->generation_memory_ = std::move(*table);
  const OwnedMemory& owned = chunk->generation_memory_;
  Result<GenerationWriter> generations = GenerationWriter::Open({owned.data(), owned.size()}, slots);
  if (!generations) return generations.error();
  chunk->generations_ = *generations;
  chunk->generations_.TakeUpAll();  // the kvmd before may have been ended while it gave the chunk up
  chunk->memory = ChunkMemory::Reopen(std::move(fds[1]), stored.size_bytes(), stored.reserved_huge(), stored.transparent_bytes());
  chunk->region = &region;
  chunk->position = group.blocks.AddUnknownChunk();
  chunk->uid = stored.writer_uid();
  region.keeper = chunk.get();
  return chunk;
}

void TierChunk::GiveUp() noexcept {
  generations_.EndAll();
  Close();
}

void TierChunk::Close() noexcept {
  if (region != nullptr) region->keeper = nullptr;
  region = nullptr;
}

bool TierChunk::Publish(std::uint32_t slot, Generation write, PublishRecord record, std::uint64_t checksum) {
  if (group.kind.checksums) generations_.SetChecksum(slot, checksum);
  if (!generations_.FinishWrite(slot, write)) return false;
  KVM_FAULT_POINT(kvmd_stow_readable);
  record.block = slot;
  record.generation = write + 1;
  if (group.domain.PublishKept(*region, record)) return true;
  BeginWrite(slot);
  return false;
}

void TierChunk::Unpublish(std::uint32_t slot) {
  BeginWrite(slot);
  KVM_FAULT_POINT(kvmd_evict_withdrawn);
  group.domain.EraseKept(*region, slot);
}

}  // namespace kvm::daemon
