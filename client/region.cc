#include "kvclient/region.h"

#include <sys/stat.h>

#include <algorithm>

#include "client/client_impl.h"
#include "proto/protocol_limits.h"

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

}  // namespace

std::uint64_t InodeOf(int fd) noexcept {
  struct stat info {};
  return ::fstat(fd, &info) == 0 ? static_cast<std::uint64_t>(info.st_ino) : 0;
}

Result<std::shared_ptr<Region::Impl>> Region::Impl::Allocate(const Model& model, RegionOptions options,
                                                             std::shared_ptr<MemoryBackend> backend) {
  if (options.name.empty() || options.name.size() > kMaxNameBytes) {
    return MakeError(Errc::kInvalidArgument,
                     "region name: 1 to " + std::to_string(kMaxNameBytes) + " bytes, got " + std::to_string(options.name.size()));
  }
  if (Status valid = options.shard.Validate(); !valid) return valid.error();
  if (options.segment_bytes.empty()) options.segment_bytes = NeededBytes(options.geometry);
  if (options.segment_bytes.size() > kMaxSegments) {
    return MakeError(Errc::kBadGeometry, "geometry: " + std::to_string(options.segment_bytes.size()) + " segments, the limit is " +
                                             std::to_string(kMaxSegments));
  }
  if (Status valid = options.geometry.Validate(options.segment_bytes); !valid) return valid.error();

  auto region = std::make_shared<Impl>();
  Result<std::unique_ptr<LocalMemory>> memory = backend->Allocate(options.name, options.segment_bytes);
  if (!memory) return memory.error();
  const std::uint32_t blocks = options.geometry.block_count;
  Result<OwnedMemory> generations =
      OwnedMemory::Create("kvm:" + options.name + ":generations", GenerationTableBytes(blocks), HugePages::kTry);
  if (!generations) return generations.error();
  region->memory = std::move(*memory);
  region->generation_memory = std::move(*generations);
  region->generations = GenerationWriter::Format({region->generation_memory.data(), region->generation_memory.size()}, blocks);
  region->model = model;
  region->block_bytes = options.geometry.BlockBytes();
  region->backend = std::move(backend);
  region->options = std::move(options);
  region->records.resize(blocks);
  region->republish_from = blocks;
  return region;
}

Region::Impl::~Impl() = default;

kvmwire::RegionDescriptor Region::Impl::Descriptor() const {
  kvmwire::RegionDescriptor out;
  out.set_name(options.name);
  out.set_fingerprint(model.fingerprint.bytes.data(), model.fingerprint.bytes.size());
  for (const std::uint16_t part :
       {options.shard.tp_rank, options.shard.tp_size, options.shard.pp_rank, options.shard.pp_size, options.shard.kv_group}) {
    out.add_shard(part);
  }
  out.set_handle_kind(static_cast<std::uint32_t>(backend->kind()));
  if (backend->kind() != layout::HandleKind::kHostMemfd) {
    const auto uuid = backend->device_uuid();
    out.set_device_uuid(uuid.data(), uuid.size());
  }
  out.set_block_count(options.geometry.block_count);
  for (const SegmentHandle& handle : memory->handles()) {
    kvmwire::Segment& segment = *out.add_segments();
    segment.set_size_bytes(handle.size_bytes);
    segment.set_handle(handle.handle);
    segment.set_handle_offset(handle.handle_offset);
    segment.set_allocation(handle.allocation);
  }
  for (const GeometryPart& part : options.geometry.parts) {
    kvmwire::GeometryPart& wire = *out.add_parts();
    wire.set_segment(part.segment);
    wire.set_offset(part.offset);
    wire.set_chunk_bytes(part.chunk_bytes);
    wire.set_block_stride(part.block_stride);
    wire.set_count(part.count);
    wire.set_repeat_stride(part.repeat_stride);
  }
  return out;
}

std::uint64_t Region::Impl::Identity() const { return InodeOf(generation_memory.fd()); }

PublishOutcome Region::Impl::Publish(std::span<const PublishRequest> requests) {
  PublishOutcome outcome;
  std::vector<PublishRecord> batch;
  batch.reserve(requests.size());
  std::lock_guard lock(mutex);
  for (const PublishRequest& request : requests) {
    const BlockWrite& write = request.write;
    if (write.block >= records.size() || !generations.FinishWrite(write.block, write.generation)) {
      ++outcome.lost_race;
      continue;
    }
    batch.push_back({request.key, request.parent.lo, write.generation + 1, write.block, request.depth});
    records[write.block] = batch.back();
  }
  outcome.readable = batch.size();
  const std::shared_ptr<Client::Impl> owner = client.lock();
  const std::size_t sent = owner && registered ? owner->SendRecords(*this, batch, false) : 0;
  outcome.deferred = batch.size() - sent;
  if (owner) {
    owner->stats.blocks_published.fetch_add(outcome.readable, std::memory_order_relaxed);
    owner->stats.publishes_deferred.fetch_add(outcome.deferred, std::memory_order_relaxed);
  }
  if (outcome.deferred > 0 && registered) {
    if (republish_from == records.size()) {
      republish_from = 0;
    } else {
      republish_again = true;
    }
  }
  return outcome;
}

bool Region::Impl::PumpLocked(Client::Impl& owner) {
  std::vector<PublishRecord> batch;
  const auto blocks = static_cast<std::uint32_t>(records.size());
  while (registered && republish_from < blocks) {
    batch.clear();
    std::uint32_t next = republish_from;
    for (; next < blocks && batch.size() < kMaxPublishBatch; ++next) {
      const PublishRecord& record = records[next];
      if (record.generation != 0 && generations.Current(next) == record.generation) batch.push_back(record);
    }
    const std::size_t sent = owner.SendRecords(*this, batch, true);
    if (sent < batch.size()) {
      republish_from = batch[sent].block;
      return false;
    }
    republish_from = next;
    if (republish_from == blocks && republish_again) {
      republish_again = false;
      republish_from = 0;
    }
  }
  return republish_from == blocks;
}

// ---- the public face ----------------------------------------------------------------------------

Region::Region(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Region::~Region() {
  if (const std::shared_ptr<Client::Impl> owner = impl_->client.lock()) {
    static_cast<void>(owner->Unregister(*impl_, After(owner->options.timeout)));
  }
}

const std::string& Region::name() const noexcept { return impl_->options.name; }
const Model& Region::model() const noexcept { return impl_->model; }
const Shard& Region::shard() const noexcept { return impl_->options.shard; }
const Geometry& Region::geometry() const noexcept { return impl_->options.geometry; }
std::uint32_t Region::block_count() const noexcept { return impl_->options.geometry.block_count; }
std::uint64_t Region::block_bytes() const noexcept { return impl_->block_bytes; }

std::byte* Region::SegmentData(std::size_t segment) const noexcept {
  return segment < impl_->options.segment_bytes.size() ? impl_->memory->SegmentData(segment) : nullptr;
}

std::byte* Region::BlockData(std::uint32_t block) const noexcept {
  if (block >= block_count()) return nullptr;
  const GeometryPart& part = impl_->options.geometry.parts.front();
  return impl_->memory->SegmentData(part.segment) + part.offset + std::uint64_t{block} * part.block_stride;
}

BlockWrite Region::BeginWrite(std::uint32_t block) noexcept {
  if (block >= block_count()) return {block, 0};
  return {block, impl_->generations.BeginWrite(block)};
}

PublishOutcome Region::Publish(std::span<const PublishRequest> requests) noexcept {
  try {
    return impl_->Publish(requests);
  } catch (const std::bad_alloc&) {
    // Out of memory: what has been made readable stays so for those who know it; kvmd is not told.
    return PublishOutcome{0, 0, requests.size()};
  }
}

std::uint64_t Region::CurrentGeneration(std::uint32_t block) const noexcept { return impl_->generations.Current(block); }

Status Region::Flush(Deadline deadline) {
  const std::shared_ptr<Client::Impl> owner = impl_->client.lock();
  if (!owner) return MakeError(Errc::kCancelled, "the client of this region is gone");
  return owner->Flush(*impl_, deadline);
}

Status Region::Unregister(Deadline deadline) {
  const std::shared_ptr<Client::Impl> owner = impl_->client.lock();
  if (!owner) return {};
  return owner->Unregister(*impl_, deadline);
}

}  // namespace kvm
