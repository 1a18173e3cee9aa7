#include "kvclient/region.h"

#include <algorithm>
#include <cstring>

#include "client/peers/segment_handles.h"
#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"
#include "proto/base/memory_room.h"
#include "proto/wire/protocol_limits.h"
#include "proto/wire/region_descriptor.h"

namespace kvm {
namespace {

// The smallest segments that hold `geometry`; wrong geometries are Validate's to refuse.
std::vector<std::uint64_t> NeededBytes(const Geometry& geometry) {
  std::vector<std::uint64_t> bytes;
  for (const GeometryPart& part : geometry.parts) {
    if (part.segment >= kMaxSegmentsByHandle || geometry.block_count == 0 || part.count == 0) continue;
    if (bytes.size() <= part.segment) bytes.resize(part.segment + 1);
    std::uint64_t end = 0, product = 0;
    const bool overflow = __builtin_mul_overflow(part.block_stride, std::uint64_t{geometry.block_count} - 1, &end) ||
                          __builtin_mul_overflow(part.repeat_stride, std::uint64_t{part.count} - 1, &product) ||
                          __builtin_add_overflow(end, product, &end) || __builtin_add_overflow(end, part.offset, &end) ||
                          __builtin_add_overflow(end, part.chunk_bytes, &end);
    if (!overflow) bytes[part.segment] = std::max(bytes[part.segment], end);
  }
  return bytes;
}

Status CheckOptions(const RegionOptions& options, std::size_t max_segments) {
  if (Status named = CheckRegionName(options.name); !named) return named;
  if (Status valid = options.shard.Validate(); !valid) return valid;
  if (options.segment_bytes.size() > max_segments) {
    return MakeError(Errc::kBadGeometry, "geometry: " + std::to_string(options.segment_bytes.size()) + " segments, the limit is " +
                                             std::to_string(max_segments));
  }
  return options.geometry.Validate(options.segment_bytes);
}

// `granted`: kvmd's, or none.
Result<OwnedMemory> MakeGenerations(const RegionOptions& options, UniqueFd granted) {
  const std::size_t bytes = GenerationTableBytes(options.geometry.block_count, options.checksums);
  Result<OwnedMemory> memory = granted ? OwnedMemory::Take(std::move(granted), bytes, HugePages::kTry)
                                       : OwnedMemory::Create("kvm:" + options.name + ":generations", bytes, HugePages::kTry);
  if (memory) GenerationWriter::Format({memory->data(), memory->size()}, options.geometry.block_count, options.checksums);
  return memory;
}

}  // namespace

Result<std::shared_ptr<Region::Impl>> Region::Impl::Make(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                         std::size_t device, std::shared_ptr<LocalMemory> memory, OwnedMemory generations) {
  const std::uint32_t blocks = options.geometry.block_count;
  const std::uint64_t record_bytes = std::uint64_t{blocks} * sizeof(PublishRecord);
  if (Status fits = CheckMemoryRoom(record_bytes, "the records of region " + options.name); !fits) return fits.error();
  auto region = std::make_shared<Impl>();
  Result<GenerationWriter> writer = GenerationWriter::Open({generations.data(), generations.size()}, blocks);
  if (!writer) return writer.error();
  region->memory = std::move(memory);
  region->generation_memory = std::move(generations);
  region->generations = *writer;
  region->model = model;
  region->block_bytes = options.geometry.BlockBytes();
  region->device = device;
  region->backend = devices.Share(device);
  region->options = std::move(options);
  region->records.resize(blocks);
  region->republish_from = blocks;
  Result<std::shared_ptr<PeerMapping>> own = region->MapOwn(devices.size());
  if (!own) return own.error();
  region->own_mapping = std::move(*own);
  return region;
}

Result<std::shared_ptr<PeerMapping>> Region::Impl::MapOwn(std::size_t devices) const {
  PeerMapping::Parts parts;
  Result<PeerGenerations> own_generations = MapGenerations(generation_memory.fd(), options.geometry.block_count);
  if (!own_generations) return own_generations.error();
  parts.generations = std::move(*own_generations);
  if (device != DeviceSet::kHost) static_cast<void>(backend->AttachGenerations(parts.generations));  // else the CPU validates
  Result<std::unique_ptr<PeerMemory>> view = backend->View(*memory);
  if (!view) return view.error();
  parts.payload = std::make_shared<PeerPayload>();
  // The view must not outlive the memory: both go with the payload.
  parts.payload->memories[device] = std::shared_ptr<PeerMemory>(view->release(), [keep = memory](PeerMemory* peer) { delete peer; });
  parts.geometry = options.geometry;
  parts.name = options.name;
  parts.identity = Identity();
  parts.devices = devices;
  parts.own = true;
  return std::make_shared<PeerMapping>(std::move(parts));
}

Result<std::shared_ptr<Region::Impl>> Region::Impl::Allocate(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                             std::size_t device, const GrantMemory& grant) {
  if (Status sound = Complete(options); !sound) return sound.error();
  std::vector<std::uint64_t> sizes{GenerationTableBytes(options.geometry.block_count, options.checksums)};
  if (device == DeviceSet::kHost) sizes.insert(sizes.end(), options.segment_bytes.begin(), options.segment_bytes.end());
  Fds granted = grant(sizes);
  Result<OwnedMemory> generations = MakeGenerations(options, granted.empty() ? UniqueFd() : std::move(granted[0]));
  if (!generations) return generations.error();
  std::vector<SegmentHandle> segments;
  for (std::size_t i = 1; i < granted.size(); ++i) {
    segments.emplace_back();
    segments.back().size_bytes = sizes[i];
    segments.back().fd = std::move(granted[i]);
  }
  Result<std::unique_ptr<LocalMemory>> memory =
      segments.empty() ? devices[device].Allocate(options.name, options.segment_bytes) : devices[device].Take(std::move(segments));
  if (!memory) return memory.error();
  return Make(model, std::move(options), devices, device, std::move(*memory), std::move(*generations));
}

Result<std::shared_ptr<Region::Impl>> Region::Impl::Register(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                             std::size_t device, std::span<const DeviceRange> segments,
                                                             const GrantMemory& grant) {
  options.segment_bytes.clear();
  for (const DeviceRange& segment : segments) options.segment_bytes.push_back(segment.size_bytes);
  if (Status sound = CheckOptions(options, kMaxSegmentsByHandle); !sound) return sound.error();
  Result<std::unique_ptr<LocalMemory>> memory = devices[device].Register(segments);
  if (!memory) return MakeError(memory.error().code, "region " + options.name + ": " + memory.error().message);
  Fds granted;
  const std::uint64_t bytes = GenerationTableBytes(options.geometry.block_count, options.checksums);
  if ((*memory)->kind() == layout::HandleKind::kCudaVmmFd) granted = grant({&bytes, 1});
  Result<OwnedMemory> generations = MakeGenerations(options, granted.empty() ? UniqueFd() : std::move(granted[0]));
  if (!generations) return generations.error();
  return Make(model, std::move(options), devices, device, std::move(*memory), std::move(*generations));
}

Result<std::shared_ptr<Region::Impl>> Region::Impl::Adopt(const Model& model, RegionOptions options, const DeviceSet& devices,
                                                          std::size_t device, const kvmwire::AdoptRegionReply& reply, Fds fds) {
  Result<std::vector<SegmentHandle>> segments = HandlesOf(reply.descriptor_(), fds);
  if (!segments) return segments.error();
  const std::size_t bytes = GenerationTableBytes(options.geometry.block_count, options.checksums);
  Result<OwnedMemory> generations = OwnedMemory::Take(std::move(fds.front()), bytes, HugePages::kTry);
  if (!generations) return MakeError(generations.error().code, "region " + options.name + ": generations: " + generations.error().message);
  Result<std::unique_ptr<LocalMemory>> memory = devices[device].Take(std::move(*segments));
  if (!memory) return memory.error();
  Result<std::shared_ptr<Impl>> made = Make(model, std::move(options), devices, device, std::move(*memory), std::move(*generations));
  if (!made) return made;
  Impl& region = **made;
  const Result<MappedMemory> list =
      MappedMemory::Attach(fds.back().get(), std::max<std::uint64_t>(reply.records(), 1) * sizeof(PublishRecord));
  if (!list) return list.error();
  for (std::uint64_t i = 0; i < reply.records(); ++i) {
    PublishRecord record;
    std::memcpy(&record, list->data() + i * sizeof(record), sizeof(record));
    if (record.block < region.records.size()) region.records[record.block] = record;
  }
  // Of blocks that its last owner gave up before it died.
  region.generations.TakeUpAll();
  region.row = reply.region();
  region.region_epoch = reply.region_epoch();
  region.registered = region.known_to_kvmd = true;
  return made;
}

Status Region::Impl::Complete(RegionOptions& options) {
  if (options.segment_bytes.empty()) options.segment_bytes = NeededBytes(options.geometry);
  return CheckOptions(options, kMaxSegments);
}

kvmwire::RegionDescriptor Region::Impl::Expected(const Model& model, const RegionOptions& options) {
  kvmwire::RegionDescriptor out;
  out.set_name(options.name);
  out.set_fingerprint(model.fingerprint.bytes.data(), model.fingerprint.bytes.size());
  for (const std::uint16_t part :
       {options.shard.tp_rank, options.shard.tp_size, options.shard.pp_rank, options.shard.pp_size, options.shard.kv_group}) {
    out.add_shard(part);
  }
  if (options.device != kHostMemory) out.set_device_uuid(options.device.data(), options.device.size());
  for (const std::uint64_t bytes : options.segment_bytes) out.add_segments()->set_size_bytes(bytes);
  SetGeometry(options.geometry, out);
  return out;
}

kvmwire::RegionDescriptor Region::Impl::Descriptor() const {
  kvmwire::RegionDescriptor out = Expected(model, options);
  out.set_handle_kind(static_cast<std::uint32_t>(memory->kind()));
  for (std::size_t i = 0; i < memory->handles().size(); ++i) {
    const SegmentHandle& handle = memory->handles()[i];
    kvmwire::Segment& segment = *out.mutable_segments(static_cast<int>(i));
    segment.set_handle(handle.handle);
    segment.set_handle_offset(handle.handle_offset);
    segment.set_allocation(handle.allocation);
    segment.set_allocation_bytes(handle.allocation_bytes);
  }
  out.set_outlives_owner(options.outlives_owner && memory->kind() != layout::HandleKind::kCudaIpc);
  return out;
}

FileId Region::Impl::Identity() const { return FileIdOf(generation_memory.fd()); }

// ---- the public face ----------------------------------------------------------------------------

Region::Region(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Region::~Region() {
  if (!impl_->process.Here()) {
    LeaveToParent(std::move(impl_));
    return;
  }
  impl_->End();
  if (const std::shared_ptr<Client::Impl> owner = impl_->client.lock()) {
    static_cast<void>(owner->Unregister(*impl_, After(owner->options.timeout)));
  }
}

const std::string& Region::name() const noexcept { return impl_->options.name; }
const Model& Region::model() const noexcept { return impl_->model; }
const Shard& Region::shard() const noexcept { return impl_->options.shard; }
const DeviceUuid& Region::device() const noexcept { return impl_->options.device; }
const Geometry& Region::geometry() const noexcept { return impl_->options.geometry; }
std::uint32_t Region::block_count() const noexcept { return impl_->options.geometry.block_count; }
std::uint64_t Region::block_bytes() const noexcept { return impl_->block_bytes; }
std::span<const std::uint64_t> Region::segment_bytes() const noexcept { return impl_->options.segment_bytes; }

// One enumeration for users, one on the wire, with the same numbers.
static_assert(static_cast<unsigned>(MemoryKind::kHostMemfd) == static_cast<unsigned>(layout::HandleKind::kHostMemfd));
static_assert(static_cast<unsigned>(MemoryKind::kCudaIpc) == static_cast<unsigned>(layout::HandleKind::kCudaIpc));
static_assert(static_cast<unsigned>(MemoryKind::kCudaVmmFd) == static_cast<unsigned>(layout::HandleKind::kCudaVmmFd));
MemoryKind Region::memory_kind() const noexcept { return static_cast<MemoryKind>(impl_->memory->kind()); }

std::string_view MemoryKindName(MemoryKind kind) noexcept {
  switch (kind) {
    case MemoryKind::kHostMemfd: return "host_memfd";
    case MemoryKind::kCudaIpc: return "cuda_ipc";
    case MemoryKind::kCudaVmmFd: return "cuda_vmm_fd";
  }
  return "unknown";
}

std::byte* Region::SegmentData(std::size_t segment) const noexcept {
  return impl_->process.Here() && segment < impl_->options.segment_bytes.size() ? impl_->memory->SegmentData(segment) : nullptr;
}

std::byte* Region::BlockData(std::uint32_t block) const noexcept {
  if (block >= block_count() || !impl_->process.Here()) return nullptr;
  const GeometryPart& part = impl_->options.geometry.parts.front();
  return impl_->memory->SegmentData(part.segment) + part.offset + std::uint64_t{block} * part.block_stride;
}

BlockWrite Region::BeginWrite(std::uint32_t block) noexcept {
  if (block >= block_count() || !impl_->process.Here()) return {block, 0};
  const BlockWrite write{block, impl_->generations.BeginWrite(block)};
  KVM_FAULT_POINT(client_write_begun);
  return write;
}

PublishOutcome Region::Publish(std::span<const PublishRequest> requests) noexcept {
  if (!impl_->process.Here()) return PublishOutcome{0, requests.size(), 0};
  try {
    return impl_->Publish(requests);
  } catch (const std::bad_alloc&) {
    // Out of memory: what has been made readable stays so for those who know it; kvmd is not told.
    return PublishOutcome{0, 0, requests.size()};
  }
}

Status Region::PublishOnStream(std::span<const PublishRequest> requests, StreamHandle stream) noexcept {
  try {
    if (!impl_->process.Here()) return BelongsToParent("region");
    return impl_->PublishOnStream(requests, stream);
  } catch (const std::bad_alloc&) {
    return MakeError(Errc::kResourceExhausted, "out of memory");
  }
}

std::size_t Region::Offload(std::span<const std::uint32_t> blocks) noexcept {
  if (!impl_->process.Here()) return 0;
  try {
    return impl_->Offload(blocks, nullptr);
  } catch (const std::bad_alloc&) {
    return 0;
  }
}

Result<std::size_t> Region::OffloadBeforeReuse(std::span<const std::uint32_t> blocks, Deadline deadline) noexcept {
  try {
    if (!impl_->process.Here()) return BelongsToParent("region");
    auto wait = std::make_shared<OffloadWait>();
    static_cast<void>(impl_->Offload(blocks, wait));
    return wait->Wait(deadline);
  } catch (const std::bad_alloc&) {
    return MakeError(Errc::kResourceExhausted, "out of memory");
  }
}

Status Region::WriteBytes(std::size_t segment, std::uint64_t offset, std::span<const std::byte> bytes) {
  if (!impl_->process.Here()) return BelongsToParent("region");
  return impl_->backend->WriteBytes(*impl_->memory, segment, offset, bytes);
}

Status Region::ReadBytes(std::size_t segment, std::uint64_t offset, std::span<std::byte> bytes) const {
  if (!impl_->process.Here()) return BelongsToParent("region");
  return impl_->backend->ReadBytes(*impl_->memory, segment, offset, bytes);
}

std::uint64_t Region::CurrentGeneration(std::uint32_t block) const noexcept {
  return impl_->process.Here() ? impl_->generations.Current(block) : 0;
}

Status Region::Flush(Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("region");
  const std::shared_ptr<Client::Impl> owner = impl_->client.lock();
  if (!owner) return MakeError(Errc::kCancelled, "the client of this region is gone");
  return owner->Flush(*impl_, deadline);
}

Status Region::Unregister(Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("region");
  impl_->End();
  const std::shared_ptr<Client::Impl> owner = impl_->client.lock();
  if (!owner) return {};
  return owner->Unregister(*impl_, deadline);
}

}  // namespace kvm
