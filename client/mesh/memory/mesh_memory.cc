#include "client/mesh/memory/mesh_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <new>
#include <random>
#include <utility>

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {
namespace {

constexpr std::chrono::milliseconds kAllocateTimeout{2000};
// Others wait for the thread as long as one step takes: some milliseconds.
constexpr std::uint64_t kMapBytes = std::uint64_t{8} << 20;
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// A user may run several of these processes beside one kvmd, which tells regions of a user apart by
// their names; and a region of a process that has ended may still be there.
std::string UniqueNames(PoolUse use) {
  std::random_device random;
  std::array<char, 17> id{};
  std::snprintf(id.data(), id.size(), "%08x%08x", static_cast<unsigned>(random()), static_cast<unsigned>(random()));
  return std::string(use == PoolUse::kLanding ? "mesh-landing-" : "mesh-staging-") + id.data() + '-';
}

}  // namespace

// Marks a shape whose pool is being made.
class MeshMemory::Making {
 public:
  Making(Pools& pools, const BlockShape& shape) : pools_(pools), shape_(shape) { pools_.emplace(shape_, nullptr); }
  ~Making() {
    const auto found = pools_.find(shape_);
    if (found != pools_.end() && !found->second) pools_.erase(found);
  }
  Making(const Making&) = delete;
  Making& operator=(const Making&) = delete;

 private:
  Pools& pools_;
  BlockShape shape_;
};

MeshMemory::MeshMemory(std::shared_ptr<Client> client, WorkThreads& threads, PoolUse use, std::uint64_t bytes)
    : client_(std::move(client)), threads_(threads), use_(use), bytes_(bytes), names_(UniqueNames(use)) {}

std::shared_ptr<SlotPool> MeshMemory::Existing(const BlockShape& shape) const {
  const auto found = pools_.find(shape);
  return found == pools_.end() ? nullptr : found->second;
}

Awaitable<Result<std::shared_ptr<SlotPool>>> MeshMemory::Get(Model model, BlockShape shape) {
  if (std::shared_ptr<SlotPool> pool = Existing(shape)) co_return pool;
  if (pools_.contains(shape)) co_return MakeError(Errc::kResourceExhausted, "memory for these blocks is being made");
  if (pools_.size() >= kMaxPools) co_return NotMade(MakeError(Errc::kResourceExhausted, "too many models and shards"));
  if (bytes_ < shape.block_bytes) {
    co_return NotMade(MakeError(Errc::kUnsupported, std::string(use_ == PoolUse::kLanding ? "--pool-size" : "--staging-size") + ": " +
                                                        std::to_string(bytes_) + " bytes hold no block of " +
                                                        std::to_string(shape.block_bytes)));
  }
  const auto blocks = static_cast<std::uint32_t>(std::min<std::uint64_t>(bytes_ / shape.block_bytes, Geometry::kMaxBlocks));
  RegionOptions options;
  options.name = names_ + std::to_string(++made_);
  options.shard = shape.shard;
  options.geometry = Geometry::Contiguous(blocks, shape.block_bytes);
  // The pool is a cache itself, and what it holds came from another node's.
  options.offload = OffloadMode::kNever;
  options.outlives_owner = false;
  std::function<Result<std::shared_ptr<Region>>()> allocate = [this, &model, &options] {
    return client_->AllocateRegion(model, options, After(kAllocateTimeout));
  };
  // However this ends, the next call may try again unless there is a pool now.
  const Making making(pools_, shape);
  Result<std::shared_ptr<Region>> region = co_await threads_.Run("memory for blocks", allocate);
  if (!region) co_return NotMade(region.error());
  std::shared_ptr<SlotPool> pool = std::make_shared<SlotPool>(std::move(*region));
  pools_[shape] = pool;
  MapFrom(pool, 0);
  co_return pool;
}

Error MeshMemory::NotMade(Error error) {
  if (const auto left_out = not_made_lines_.Take()) {
    LogEvent(LogLevel::kError, "pool_not_made",
             {{"of", use_ == PoolUse::kLanding ? "blocks that come" : "blocks that are sent"},
              {"reason", error.ToString()},
              {"left_out", *left_out}});
  }
  return error;
}

// The memory is the region's already, so this takes none. What it does not map, for lack of memory
// or before Linux 5.14, is mapped when it is first written.
void MeshMemory::MapFrom(const std::shared_ptr<SlotPool>& pool, std::uint64_t from) {
  const std::uint64_t all = pool->region().segment_bytes().front();
  if (from >= all) return;
  try {
    const auto mapped = std::make_shared<bool>(false);
    const auto map = [pool, from, mapped, bytes = std::min(kMapBytes, all - from)] {
      *mapped = ::madvise(pool->region().SegmentData() + from, bytes, MADV_POPULATE_WRITE) == 0;
    };
    threads_.Start(map, [this, pool, from, mapped](const std::exception_ptr&) {
      if (*mapped) MapFrom(pool, from + kMapBytes);
    });
  } catch (const std::bad_alloc&) {
    return;
  }
}

}  // namespace kvm::mesh
