#include "client/mesh/memory/mesh_memory.h"

#include <algorithm>

#include "client/mesh/threads/on_thread.h"

namespace kvm::mesh {
namespace {

constexpr std::chrono::milliseconds kAllocateTimeout{2000};

}  // namespace

std::shared_ptr<SlotPool> MeshMemory::Existing(const BlockShape& shape) const {
  const auto found = pools_.find(shape);
  return found == pools_.end() ? nullptr : found->second;
}

Awaitable<Result<std::shared_ptr<SlotPool>>> MeshMemory::Get(Model model, BlockShape shape) {
  if (std::shared_ptr<SlotPool> pool = Existing(shape)) co_return pool;
  if (pools_.contains(shape)) co_return MakeError(Errc::kResourceExhausted, "memory for these blocks is being made");
  if (pools_.size() >= kMaxPools) co_return MakeError(Errc::kResourceExhausted, "too many models and shards");
  pools_.emplace(shape, nullptr);
  const auto blocks = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(bytes_ / shape.block_bytes, 2, Geometry::kMaxBlocks));
  RegionOptions options;
  options.name = (use_ == PoolUse::kLanding ? "mesh-landing-" : "mesh-staging-") + std::to_string(++made_);
  options.shard = shape.shard;
  options.geometry = Geometry::Contiguous(blocks, shape.block_bytes);
  // The pool is a cache itself, and what it holds came from another node's.
  options.offload = OffloadMode::kNever;
  options.outlives_owner = false;
  std::function<Result<std::shared_ptr<Region>>()> allocate = [this, &model, &options] {
    return client_->AllocateRegion(model, options, After(kAllocateTimeout));
  };
  Result<std::shared_ptr<Region>> region = co_await OnThread(threads_, allocate);
  if (!region) {
    pools_.erase(shape);
    co_return region.error();
  }
  std::shared_ptr<SlotPool> pool = std::make_shared<SlotPool>(std::move(*region));
  pools_[shape] = pool;
  co_return pool;
}

}  // namespace kvm::mesh
