#include "kvclient/region.h"

#include <new>
#include <utility>

#include "client/region/region_impl.h"
#include "proto/base/fault_point.h"

namespace kvm {
namespace {

// So many blocks of a batch ahead, the counter of one is fetched: two lines of counters in order.
constexpr std::size_t kRetractAhead = 16;

}  // namespace

Region::Region(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

Region::~Region() {
  if (!impl_->process.Here()) {
    LeaveToParent(std::move(impl_));
    return;
  }
  impl_->End();
  if (const std::shared_ptr<RegionHost> owner = impl_->host.lock()) {
    static_cast<void>(owner->Unregister(*impl_, After(owner->timeout)));
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

// The public enumeration and that of the wire format have the same numbers.
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

// Asks once for all blocks whether this process was forked.
void Region::Retract(std::span<const std::uint32_t> blocks) noexcept {
  if (!impl_->process.Here()) return;
  GenerationWriter& generations = impl_->generations;
  const std::uint32_t count = generations.block_count();
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (i + kRetractAhead < blocks.size()) generations.PrefetchToWrite(blocks[i + kRetractAhead]);
    if (blocks[i] < count) static_cast<void>(generations.BeginWrite(blocks[i]));
  }
}

PublishOutcome Region::Publish(std::span<const PublishRequest> requests) noexcept {
  if (!impl_->process.Here()) return PublishOutcome{0, requests.size(), 0};
  try {
    return impl_->Publish(requests);
  } catch (const std::bad_alloc&) {
    // Out of memory: blocks that have been made readable stay readable for peers that know them;
    // kvmd is not told of them.
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
  return impl_->Flush(deadline);
}

Status Region::Unregister(Deadline deadline) {
  if (!impl_->process.Here()) return BelongsToParent("region");
  impl_->End();
  const std::shared_ptr<RegionHost> owner = impl_->host.lock();
  if (!owner) return {};
  return owner->Unregister(*impl_, deadline);
}

}  // namespace kvm
