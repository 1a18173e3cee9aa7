#include "cuda/plan/transfer_plan.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string>

namespace kvm {
namespace {

constexpr std::uint64_t kMaxItems = std::uint64_t{1} << 31;

static_assert(sizeof(PairEntry) == sizeof(ImportBlock) && offsetof(PairEntry, source) == offsetof(ImportBlock, source_block) &&
                  offsetof(PairEntry, destination) == offsetof(ImportBlock, destination_block) &&
                  offsetof(PairEntry, generation) == offsetof(ImportBlock, generation),
              "blocks become pairs by memcpy");

// Runs of one request that share source and plan.
struct Group {
  const TransferRun* run = nullptr;  // the first of them
  std::vector<BlockRange> by_kernel, by_engine;
  std::uint64_t largest_piece = 0;
};

std::uint32_t CountOf(const std::vector<BlockRange>& ranges) {
  std::uint32_t count = 0;
  for (const BlockRange& range : ranges) count += range.count;
  return count;
}

void AddRange(std::vector<BlockRange>& ranges, std::size_t first, std::size_t count) {
  if (!ranges.empty() && ranges.back().first + ranges.back().count == first) {
    ranges.back().count += static_cast<std::uint32_t>(count);
  } else {
    ranges.push_back({static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(count)});
  }
}

// The number of blocks from `first` on that are adjacent on both sides.
std::size_t AdjacentBlocks(std::span<const ImportBlock> blocks, std::size_t first, std::size_t end) {
  std::size_t next = first + 1;
  while (next < end && blocks[next].source_block == blocks[next - 1].source_block + 1 &&
         blocks[next].destination_block == blocks[next - 1].destination_block + 1) {
    ++next;
  }
  return next - first;
}

// Whether the pieces of neighbouring blocks have no gap between them, on both sides.
bool Gapless(const CopyPlan& plan) {
  return std::all_of(plan.begin(), plan.end(),
                     [](const CopyPiece& piece) { return piece.source_stride == piece.bytes && piece.destination_stride == piece.bytes; });
}

std::uint64_t BlockBytes(const CopyPlan& plan) {
  std::uint64_t sum = 0;
  for (const CopyPiece& piece : plan) sum += piece.bytes;
  return sum;
}

Group& GroupOf(std::vector<Group>& groups, const TransferRun& run) {
  for (Group& group : groups) {
    if (group.run->source == run.source && group.run->plan == run.plan) return group;
  }
  groups.emplace_back();
  groups.back().run = &run;
  return groups.back();
}

std::uint64_t Address(const std::byte* base, std::uint64_t offset) { return reinterpret_cast<std::uintptr_t>(base) + offset; }

PieceEntry Resolve(const TransferRun& run, const CopyPiece& piece, std::span<std::byte* const> destination_bases) {
  return {Address(run.source_bases[piece.source_segment], piece.source_offset), piece.source_stride,
          Address(destination_bases[piece.destination_segment], piece.destination_offset), piece.destination_stride, piece.bytes};
}

void AddEngineCopies(TransferPlan& out, const TransferRun& run, const ImportBlock& first, std::size_t count,
                     std::span<std::byte* const> destination_bases) {
  for (const CopyPiece& piece : *run.plan) {
    const PieceEntry at = Resolve(run, piece, destination_bases);
    out.engine_copies.push_back({at.source + first.source_block * at.source_stride,
                                 at.destination + first.destination_block * at.destination_stride, piece.bytes * count});
  }
}

bool SegmentsExist(const TransferRun& run, std::size_t destinations) {
  return std::all_of(run.plan->begin(), run.plan->end(), [&](const CopyPiece& piece) {
    return piece.source_segment < run.source_bases.size() && piece.destination_segment < destinations;
  });
}

template <class T>
void Append(std::vector<std::byte>& table, const T& entry) {
  const std::size_t at = table.size();
  table.resize(at + sizeof(T));
  std::memcpy(table.data() + at, &entry, sizeof(T));
}

void AppendPairs(TransferPlan& out, std::span<const ImportBlock> blocks, const std::vector<BlockRange>& ranges) {
  for (const BlockRange& range : ranges) {
    const auto* from = reinterpret_cast<const std::byte*>(blocks.data() + range.first);
    out.table.insert(out.table.end(), from, from + range.count * sizeof(PairEntry));
  }
  out.order.insert(out.order.end(), ranges.begin(), ranges.end());
}

// Assigns each stretch of adjacent blocks of a run to the copy engine, if it is long enough, or
// else to the kernel.
void DivideRun(const TransferRun& run, std::span<const ImportBlock> blocks, std::span<std::byte* const> destination_bases,
               const CopyLimits& limits, Group& group, KernelWork& work, TransferPlan& out) {
  const std::uint64_t block_bytes = BlockBytes(*run.plan), engine_bytes = EngineRunBytes(run.path, limits) * run.plan->size();
  const bool engine_possible = run.count * block_bytes >= engine_bytes && Gapless(*run.plan);
  const std::size_t end = run.first + run.count;
  for (std::size_t i = run.first; i < end;) {
    const std::size_t count = engine_possible ? AdjacentBlocks(blocks, i, end) : run.count;
    const bool by_engine = engine_possible && count * block_bytes >= engine_bytes;
    AddRange(by_engine ? group.by_engine : group.by_kernel, i, count);
    if (by_engine) {
      AddEngineCopies(out, run, blocks[i], count, destination_bases);
    } else {
      work.bytes += count * block_bytes;
      work.worst_path = std::max(work.worst_path, run.path);
    }
    i += count;
  }
}

}  // namespace

Status PlanTransfer(std::span<const TransferRun> runs, std::span<const ImportBlock> blocks, std::span<std::byte* const> destination_bases,
                    const CopyLimits& limits, TransferPlan& out) {
  out.engine_copies.clear();
  out.table.clear();
  out.order.clear();
  std::vector<Group> groups;
  KernelWork work;
  for (const TransferRun& run : runs) {
    if (run.count == 0) continue;
    if (!SegmentsExist(run, destination_bases.size()))
      return MakeError(Errc::kInvalidArgument, "copy plan names a segment that is not mapped");
    DivideRun(run, blocks, destination_bases, limits, GroupOf(groups, run), work, out);
  }

  std::vector<PieceEntry> pieces;
  for (Group& group : groups) {
    for (const CopyPiece& piece : *group.run->plan) {
      pieces.push_back(Resolve(*group.run, piece, destination_bases));
      const PieceEntry& entry = pieces.back();
      group.largest_piece = std::max(group.largest_piece, entry.bytes);
      if (group.by_kernel.empty()) continue;
      work.alignment |= entry.source | entry.source_stride | entry.destination | entry.destination_stride | entry.bytes;
      work.largest_piece = std::max(work.largest_piece, entry.bytes);
    }
  }
  out.kernel = ChooseKernel(work, limits);
  out.kernel_bytes = work.bytes;

  out.table.reserve(groups.size() * sizeof(GroupEntry) + pieces.size() * sizeof(PieceEntry) + blocks.size() * sizeof(PairEntry));
  std::uint64_t items = 0;
  std::size_t piece_first = 0, pair_first = 0;
  for (const Group& group : groups) {
    const std::uint64_t split = std::max<std::uint64_t>(1, (group.largest_piece + out.kernel.unit_bytes - 1) / out.kernel.unit_bytes);
    GroupEntry entry;
    entry.generations = group.run->generations;
    entry.generation_count = group.run->generation_count;
    entry.item_first = static_cast<std::uint32_t>(items);
    entry.piece_first = static_cast<std::uint32_t>(piece_first);
    entry.piece_count = static_cast<std::uint32_t>(group.run->plan->size());
    entry.pair_first = static_cast<std::uint32_t>(pair_first);
    entry.copy_pairs = CountOf(group.by_kernel);
    entry.pair_count = entry.copy_pairs + CountOf(group.by_engine);
    entry.split = static_cast<std::uint32_t>(split);
    Append(out.table, entry);
    unsigned long long added = 0;
    if (split >= kMaxItems || __builtin_mul_overflow(split * entry.piece_count, std::uint64_t{entry.copy_pairs}, &added) ||
        added >= kMaxItems || items + added >= kMaxItems) {
      return MakeError(Errc::kInvalidArgument, "import of more pieces than one launch can number; import fewer blocks at once");
    }
    items += added;
    piece_first += entry.piece_count;
    pair_first += entry.pair_count;
  }
  for (const PieceEntry& piece : pieces) Append(out.table, piece);
  for (const Group& group : groups) {
    AppendPairs(out, blocks, group.by_kernel);
    AppendPairs(out, blocks, group.by_engine);
  }
  out.group_count = static_cast<std::uint32_t>(groups.size());
  out.piece_count = static_cast<std::uint32_t>(piece_first);
  out.pair_count = static_cast<std::uint32_t>(pair_first);
  out.item_count = static_cast<std::uint32_t>(items);
  SizeGrid(out.kernel, items, work.worst_path, limits);
  return {};
}

}  // namespace kvm
