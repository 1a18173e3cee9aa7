// TransferPlan: how an import's bytes are moved: long contiguous runs by the copy engine, the rest
// by one kernel.
//
// Host code without CUDA, so that it is tested where there is no GPU. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "cuda/memory_backend.h"
#include "cuda/plan/copy_policy.h"
#include "cuda/plan/copy_table.h"

namespace kvm {

// The leading blocks of one ImportRun that are to be copied.
struct TransferRun {
  const CopyPlan* plan = nullptr;
  std::span<const std::byte* const> source_bases;  // device addresses of the source's segments
  std::uint64_t generations = 0;                   // device address of the source's counters
  std::uint32_t generation_count = 0;
  MemoryPath path = MemoryPath::kSameDevice;
  const void* source = nullptr;  // runs with the same source and plan share a group
  std::size_t first = 0, count = 0;
};

struct EngineCopy {
  std::uint64_t source = 0, destination = 0, bytes = 0;

  friend bool operator==(const EngineCopy&, const EngineCopy&) = default;
};

// [first, first + count) of the request's blocks.
struct BlockRange {
  std::uint32_t first = 0, count = 0;

  friend bool operator==(const BlockRange&, const BlockRange&) = default;
};

struct TransferPlan {
  std::vector<EngineCopy> engine_copies;  // queued before the kernel, in the same stream
  std::vector<std::byte> table;           // copy_table.h
  std::uint32_t group_count = 0, piece_count = 0, pair_count = 0, item_count = 0;
  KernelChoice kernel;
  std::vector<BlockRange> order;   // the blocks of the table's pairs, one after another
  std::uint64_t kernel_bytes = 0;  // moved by the kernel
};

// kInvalidArgument: more items than one launch can number, or a plan's segment that isn't mapped.
// Preconditions: all blocks lie within both geometries, and all destinations are different. `out`
// is overwritten; using one again saves its allocations, which cost more than the planning.
[[nodiscard]] Status PlanTransfer(std::span<const TransferRun> runs, std::span<const ImportBlock> blocks,
                                  std::span<std::byte* const> destination_bases, const CopyLimits& limits, TransferPlan& out);

}  // namespace kvm
