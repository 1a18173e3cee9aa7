#include "daemon/host_cache/slab.h"

#include <fcntl.h>
#include <unistd.h>

#include "daemon/system/log.h"
#include "proto/base/fault_point.h"
#include "proto/wire/region_descriptor.h"

namespace kvm::daemon {

Result<std::unique_ptr<Slab>> Slab::Create(SlabObserver& observer, std::string name, SlabClass& group, std::uint64_t promised) {
  std::unique_ptr<Slab> slab(new Slab(observer, std::move(name), group));
  // Reserved huge pages can't be written without a mapping, so no block in them could be zeroed.
  const bool reserved = !group.domain.config().zero_on_free;
  Result<SlabMemory> memory = SlabMemory::Create(slab->name_, group.kind.block_bytes * group.blocks.slots_per_slab(), promised, reserved);
  if (!memory) return memory.error();
  slab->memory = std::move(*memory);
  return slab;
}

Status Slab::Open(std::uint32_t its_position) {
  const std::uint32_t slots = group.blocks.slots_per_slab();
  // Granted memory, although no client ever gets a writable descriptor of it: the next kvmd could
  // not write a sealed table.
  const std::size_t table_bytes = GenerationTableBytes(slots, group.kind.checksums);
  Result<UniqueFd> table_fd = CreateGrantable("kvm:" + name_ + ":generations", table_bytes);
  if (!table_fd) return table_fd.error();
  Result<OwnedMemory> table = OwnedMemory::Take(std::move(*table_fd), table_bytes);
  if (!table) return table.error();
  generation_memory_ = std::move(*table);
  generation_memory_.Guard();  // any process of kvmd's user can write it
  generations_ = GenerationWriter::Format({generation_memory_.data(), generation_memory_.size()}, slots, group.kind.checksums);

  kvmwire::RegionDescriptor descriptor;
  descriptor.set_name(name_);
  descriptor.set_fingerprint(group.fingerprint);
  for (const std::uint32_t part : group.shard) descriptor.add_shard(part);
  descriptor.set_handle_kind(static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd));
  descriptor.add_segments()->set_size_bytes(group.kind.block_bytes * slots);
  SetGeometry(Geometry::Contiguous(slots, group.kind.block_bytes), descriptor);
  std::vector<PeerFd> fds;
  for (const int fd : {generation_memory_.fd(), memory.writable_fd()}) {
    fds.emplace_back(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)));
    if (!fds.back()) return SystemError("duplicate a slab's descriptor");
  }
  const Owner kvmd{kNoClient, static_cast<std::uint32_t>(::getpid()), ::geteuid()};
  Result<std::unique_ptr<Region>> prepared = group.domain.PrepareRegion(kNoClient, std::move(descriptor), std::move(fds));
  if (!prepared) return prepared.error();
  Result<Region*> added = group.domain.AddRegion(kvmd, std::move(*prepared));
  if (!added) return added.error();
  region = *added;
  region->filler = this;
  position = its_position;
  return {};
}

Result<std::unique_ptr<Slab>> Slab::Reopen(SlabObserver& observer, SlabClass& group, Region& region, const kvmwire::StoredSlab& stored) {
  std::unique_ptr<Slab> slab(new Slab(observer, region.descriptor.name(), group));
  UniqueFd fds[2];
  for (int i = 0; i < 2; ++i) {
    fds[i].Reset(::fcntl(region.fds[static_cast<std::size_t>(i)].get(), F_DUPFD_CLOEXEC, 0));
    if (!fds[i]) return SystemError("duplicate a slab's descriptor");
  }
  const std::uint32_t slots = region.info.block_count;
  Result<OwnedMemory> table = OwnedMemory::Take(std::move(fds[0]), GenerationTableBytes(slots, group.kind.checksums));
  if (!table) return table.error();
  slab->generation_memory_ = std::move(*table);
  slab->generation_memory_.Guard();
  const OwnedMemory& owned = slab->generation_memory_;
  Result<GenerationWriter> generations = GenerationWriter::Open({owned.data(), owned.size()}, slots);
  if (!generations) return generations.error();
  slab->generations_ = *generations;
  slab->generations_.TakeUpAll();  // the previous kvmd may have died while it dropped the slab
  slab->memory = SlabMemory::Reopen(std::move(fds[1]), stored.size_bytes(), stored.reserved_huge(), stored.transparent_bytes());
  slab->region = &region;
  slab->position = group.blocks.AddUnknownSlab();
  slab->uid = stored.writer_uid();
  region.filler = slab.get();
  return slab;
}

void Slab::GiveUp() noexcept {
  Spend(group.blocks.slots_per_slab() / 4);
  generations_.EndAll();
  Close();
}

void Slab::Close() noexcept {
  if (region != nullptr) region->filler = nullptr;
  region = nullptr;
}

bool Slab::Publish(std::uint32_t slot, Generation write, PublishRecord record, std::uint64_t checksum) {
  if (group.kind.checksums) generations_.SetChecksum(slot, checksum);
  if (!generations_.FinishWrite(slot, write)) return false;
  KVM_FAULT_POINT(kvmd_store_readable);
  record.block = slot;
  record.generation = write + 1;
  if (group.domain.PublishCached(*region, record)) return true;
  BeginWrite(slot);
  return false;
}

void Slab::FreeSlot(std::uint32_t slot) noexcept {
  group.blocks.Free(group.blocks.SlotAt(position, slot));
  ZeroSlot(slot);
}

void Slab::ZeroSlot(std::uint32_t slot) noexcept {
  if (!group.domain.config().zero_on_free) return;
  if (Status zeroed = memory.Zero(slot * group.kind.block_bytes, group.kind.block_bytes); !zeroed)
    LogLimited(LogLevel::kError, "block_not_zeroed", {{"region", name_}, {"slot", slot}, {"reason", zeroed.error().ToString()}});
}

void Slab::Unpublish(std::uint32_t slot) {
  BeginWrite(slot);
  KVM_FAULT_POINT(kvmd_evict_withdrawn);
  group.domain.EraseCached(*region, slot);
}

}  // namespace kvm::daemon
