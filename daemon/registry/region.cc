#include "daemon/registry/region.h"

#include <algorithm>
#include <cassert>
#include <cstring>

#include "proto/wire/protocol_limits.h"
#include "proto/wire/region_descriptor.h"

namespace kvm::daemon {
namespace {

using layout::HandleKind;

Error Invalid(const std::string& what) { return MakeError(Errc::kInvalidArgument, "region: " + what); }

Result<HandleKind> CheckKind(std::uint32_t kind) {
  switch (static_cast<HandleKind>(kind)) {
    case HandleKind::kHostMemfd:
    case HandleKind::kCudaIpc:
    case HandleKind::kCudaVmmFd: return static_cast<HandleKind>(kind);
  }
  return MakeError(Errc::kUnsupported, "region: unknown handle kind " + std::to_string(kind));
}

Status CheckShard(const kvmwire::RegionDescriptor& descriptor, const ModelSpec& spec, layout::RegionInfo& info) {
  if (descriptor.shard_size() != 5) return Invalid("shard has " + std::to_string(descriptor.shard_size()) + " numbers, 5 expected");
  std::uint16_t parts[5];
  for (int i = 0; i < 5; ++i) {
    if (descriptor.shard(i) > 0xFFFF) return Invalid("shard number " + std::to_string(i) + " is too large");
    parts[i] = static_cast<std::uint16_t>(descriptor.shard(i));
  }
  const Shard shard{parts[0], parts[1], parts[2], parts[3], parts[4]};
  if (Status valid = shard.Validate(); !valid) return valid;
  if (shard.tp_size != spec.tp_size) {
    return MakeError(Errc::kModelMismatch,
                     "region: shard tp_size " + std::to_string(shard.tp_size) + ", the model's tp_size is " + std::to_string(spec.tp_size));
  }
  if (shard.pp_size != spec.pp_size) {
    return MakeError(Errc::kModelMismatch,
                     "region: shard pp_size " + std::to_string(shard.pp_size) + ", the model's pp_size is " + std::to_string(spec.pp_size));
  }
  info.tp_rank = shard.tp_rank;
  info.tp_size = shard.tp_size;
  info.pp_rank = shard.pp_rank;
  info.pp_size = shard.pp_size;
  info.kv_group = shard.kv_group;
  return {};
}

// Whether only the owner, and a process to which kvmd gives the read-write descriptor, can write
// the memory that a client sent.
Status CheckWriters(int fd, const std::string& what) {
  if (WritersOf(fd) != Writers::kAnybody) return {};
  return MakeError(Errc::kPermissionDenied, "region: " + what + ": neither sealed against writing nor granted by this kvmd");
}

// Segments and the descriptors that belong to them (the first one is the generation table's).
Result<std::vector<std::uint64_t>> CheckSegments(const kvmwire::RegionDescriptor& descriptor, HandleKind kind,
                                                 const std::vector<PeerFd>& fds) {
  const auto count = static_cast<std::size_t>(descriptor.segments_size());
  const std::size_t limit = kind == HandleKind::kCudaIpc ? kMaxSegmentsByHandle : kMaxSegments;
  if (count == 0 || count > limit) return Invalid(std::to_string(count) + " segments, 1.." + std::to_string(limit) + " allowed");
  const std::size_t expected = kind == HandleKind::kCudaIpc ? 1 : 1 + count;
  if (fds.size() != expected) return Invalid(std::to_string(fds.size()) + " descriptors came, " + std::to_string(expected) + " expected");
  std::vector<std::uint64_t> bytes;
  for (std::size_t i = 0; i < count; ++i) {
    const kvmwire::Segment& segment = descriptor.segments(static_cast<int>(i));
    const std::string name = "segment " + std::to_string(i);
    if (segment.size_bytes() == 0) return Invalid(name + " is empty");
    if (segment.handle().size() != (kind == HandleKind::kCudaIpc ? 64 : 0)) {
      return Invalid(name + " has a handle of " + std::to_string(segment.handle().size()) + " bytes");
    }
    if (kind == HandleKind::kHostMemfd) {
      Result<std::size_t> size = CheckSealed(fds[1 + i].get(), segment.size_bytes());
      if (!size) return MakeError(size.error().code, "region: " + name + ": " + size.error().ToString());
      if (Status written = CheckWriters(fds[1 + i].get(), name); !written) return written.error();
    }
    bytes.push_back(segment.size_bytes());
  }
  return bytes;
}

}  // namespace

Result<std::unique_ptr<Region>> CheckRegion(kvmwire::RegionDescriptor descriptor, std::vector<PeerFd> fds, const ModelSpec& spec) {
  auto region = std::make_unique<Region>();
  layout::RegionInfo& info = region->info;
  if (Status valid = CheckRegionName(descriptor.name()); !valid) return valid.error();
  const Result<HandleKind> kind = CheckKind(descriptor.handle_kind());
  if (!kind) return kind.error();
  if (Status valid = CheckShard(descriptor, spec, info); !valid) return valid.error();
  if (fds.empty()) return Invalid("the generation table's descriptor is missing");
  if (descriptor.parts_size() > static_cast<int>(Geometry::kMaxChunksPerBlock)) {
    return MakeError(Errc::kBadGeometry, "geometry: " + std::to_string(descriptor.parts_size()) + " parts");
  }
  Result<std::vector<std::uint64_t>> segment_bytes = CheckSegments(descriptor, *kind, fds);
  if (!segment_bytes) return segment_bytes.error();
  const Geometry geometry = GeometryOf(descriptor);
  if (Status valid = geometry.Validate(*segment_bytes); !valid) return valid.error();
  if (!descriptor.device_uuid().empty() && descriptor.device_uuid().size() != sizeof(info.device_uuid))
    return Invalid("device_uuid is not 16 bytes");

  if (Status written = CheckWriters(fds[0].get(), "generation table"); !written) return written.error();
  for (const PeerFd& fd : fds) {
    PeerFd importers;
    if (WritersOf(fd.get()) == Writers::kHolders) {
      Result<UniqueFd> reopened = ReopenReadOnly(fd.get());
      if (!reopened) return reopened.error();
      importers = fd.Like(std::move(*reopened));
    }
    region->read_only.push_back(std::move(importers));
  }
  // kvmd reads the table all the time. If a page of it is gone, the kernel must be able to make a
  // new one, or kvmd would get SIGBUS.
  if (!OnOrdinaryPages(fds[0].get())) {
    return MakeError(Errc::kPermissionDenied, "region: generation table: not on ordinary pages (tmpfs)");
  }
  Result<MappedMemory> table = MappedMemory::Attach(fds[0].get(), GenerationTableBytes(geometry.block_count));
  if (!table) return MakeError(table.error().code, "region: generation table: " + table.error().ToString());
  region->generation_memory = std::move(*table);
  Result<GenerationReader> reader =
      GenerationReader::Open({region->generation_memory.data(), region->generation_memory.size()}, geometry.block_count);
  if (!reader) return reader.error();
  region->generations = *reader;

  info.handle_kind = static_cast<std::uint32_t>(*kind);
  info.block_count = geometry.block_count;
  info.block_bytes = geometry.BlockBytes();
  info.segment_count = static_cast<std::uint32_t>(descriptor.segments_size());
  std::memcpy(info.device_uuid, descriptor.device_uuid().data(), descriptor.device_uuid().size());
  std::memcpy(info.handle, descriptor.segments(0).handle().data(), descriptor.segments(0).handle().size());
  std::memcpy(info.name, descriptor.name().data(), descriptor.name().size());
  Result<SlotMap> slots = SlotMap::Create(geometry.block_count);
  if (!slots) return slots.error();
  region->slots = std::move(*slots);
  region->descriptor = std::move(descriptor);
  const std::size_t shared = *kind == HandleKind::kHostMemfd ? fds.size() : 1;
  for (std::size_t i = 0; i < shared; ++i) {
    const FileId file = FileIdOf(fds[i].get());
    if (std::find(region->files.begin(), region->files.end(), file) != region->files.end()) return Invalid("the same memory came twice");
    region->files.push_back(file);
  }
  region->fds = std::move(fds);
  return region;
}

bool MayFollow(RegionPhase from, RegionPhase to) noexcept {
  switch (from) {
    case RegionPhase::kFree: return to == RegionPhase::kLive;
    case RegionPhase::kLive: return to == RegionPhase::kOrphan || to == RegionPhase::kLeaving;
    case RegionPhase::kOrphan: return to == RegionPhase::kLive || to == RegionPhase::kLeaving;
    case RegionPhase::kLeaving: return to == RegionPhase::kFree;
  }
  return false;
}

void Region::Enter(RegionPhase next) noexcept {
  assert(MayFollow(phase_, next));
  phase_ = next;
  layout::RegionState shown = layout::RegionState::kFree;
  switch (next) {
    case RegionPhase::kFree: break;
    case RegionPhase::kLive: shown = layout::RegionState::kLive; break;
    case RegionPhase::kOrphan: shown = layout::RegionState::kOrphan; break;
    case RegionPhase::kLeaving:
      if (asks_importers) shown = layout::RegionState::kWithdrawing;
      break;
  }
  info.state = static_cast<std::uint32_t>(shown);
  if (next != RegionPhase::kOrphan) orphan.reset();
}

bool Region::table_whole() const noexcept {
  return !generation_memory.lost() && (filler == nullptr || !filler->TableLost()) && IsWhole(fds[0].get());
}

bool Region::whole() const noexcept {
  return table_whole() && std::all_of(fds.begin() + 1, fds.begin() + static_cast<std::ptrdiff_t>(files.size()),
                                      [](const PeerFd& fd) { return IsWhole(fd.get()); });
}

bool Region::outlives_owner() const noexcept {
  return descriptor.outlives_owner() && info.handle_kind != static_cast<std::uint32_t>(HandleKind::kCudaIpc);
}

bool Region::adoptable() const noexcept {
  const auto granted = [](const PeerFd& reopened) { return static_cast<bool>(reopened); };
  const std::size_t needed = info.handle_kind == static_cast<std::uint32_t>(HandleKind::kHostMemfd) ? read_only.size() : 1;
  return outlives_owner() && std::all_of(read_only.begin(), read_only.begin() + static_cast<std::ptrdiff_t>(needed), granted);
}

std::uint64_t Region::segment_bytes() const noexcept {
  std::uint64_t bytes = 0;
  for (const kvmwire::Segment& segment : descriptor.segments()) bytes += segment.size_bytes();
  return bytes;
}

std::size_t Region::descriptors() const noexcept {
  return fds.size() +
         static_cast<std::size_t>(std::count_if(read_only.begin(), read_only.end(), [](const PeerFd& fd) { return bool{fd}; }));
}

bool Region::Pin(std::uint32_t block) {
  if (filler != nullptr) return filler->Pin(block);
  ++pinned[block];
  return true;
}

void Region::Unpin(std::uint32_t block) noexcept {
  if (filler != nullptr) return filler->Unpin(block);
  const auto found = pinned.find(block);
  if (found != pinned.end() && --found->second == 0) pinned.erase(found);
}

bool SameShard(const Region& a, const Region& b) noexcept {
  return a.info.tp_rank == b.info.tp_rank && a.info.pp_rank == b.info.pp_rank && a.info.kv_group == b.info.kv_group;
}

Status CheckExpected(const Region& region, const kvmwire::RegionDescriptor& expected) {
  const kvmwire::RegionDescriptor& is = region.descriptor;
  const auto differs = [&](const std::string& field) {
    return MakeError(Errc::kBadGeometry, "region " + is.name() + ": its " + field + " differs from the expected one");
  };
  if (expected.fingerprint() != is.fingerprint())
    return MakeError(Errc::kModelMismatch, "region " + is.name() + ": it is of another model");
  if (!std::equal(is.shard().begin(), is.shard().end(), expected.shard().begin(), expected.shard().end())) return differs("shard");
  if (expected.device_uuid() != is.device_uuid()) return differs("device");
  if (expected.block_count() != is.block_count()) return differs("number of blocks");
  if (!(GeometryOf(expected) == GeometryOf(is))) return differs("geometry");
  if (expected.segments_size() != is.segments_size()) return differs("number of segments");
  for (int i = 0; i < is.segments_size(); ++i) {
    if (expected.segments(i).size_bytes() != is.segments(i).size_bytes()) return differs("size of segment " + std::to_string(i));
  }
  return {};
}

}  // namespace kvm::daemon
