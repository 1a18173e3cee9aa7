// Copy and validation of one import.
//
// Memory order (I2: generations are checked after the copy). When a CUDA block increments the
// arrival counter, after a fence, all of its loads have completed: their values were stored, or the
// ring's barriers have completed. The block that arrives last, or the kernel that follows, reads
// the generations, so each generation is read after every byte. The peer makes a generation odd
// before it changes a byte. The same fence makes the copied bytes visible on the GPU before any
// status is written, so a thread that saw the statuses may start work on the bytes. The data loads
// race with a peer that rewrites its block; its bytes are rejected then. Fences have GPU scope: a
// fence of system scope costs microseconds, and is not needed, since a status is one byte and is
// written last.
#include "cuda/kernels/copy_kernels.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cuda/kernels/device_primitives.cuh"

namespace kvm {
namespace {

constexpr unsigned kWarp = 32, kLoadsInFlight = 8;
// Bulk stores of a ring whose reads of shared memory may be pending
constexpr int kStoresInFlight = 4;
constexpr unsigned kMaxStages = 48;  // of all rings of a CUDA block

template <std::size_t kBytes>
struct InlineTable {
  alignas(16) unsigned char bytes[kBytes];
  __device__ const unsigned char* data() const { return bytes; }
};
struct DeviceTable {
  const unsigned char* bytes;
  __device__ const unsigned char* data() const { return bytes; }
};

struct TableView {
  const GroupEntry* groups;
  const PieceEntry* pieces;
  const PairEntry* pairs;

  __device__ TableView(const unsigned char* table, const CopyArgs& args)
      : groups(reinterpret_cast<const GroupEntry*>(table)),
        pieces(reinterpret_cast<const PieceEntry*>(groups + args.group_count)),
        pairs(reinterpret_cast<const PairEntry*>(pieces + args.piece_count)) {}
};

struct Item {
  const unsigned char* source;
  unsigned char* destination;
  std::uint32_t bytes;  // 0: this part begins behind the end of a short piece
};

// Finds items by number. Numbers must not decrease from call to call.
class ItemFinder {
 public:
  __device__ ItemFinder(const TableView& table, const CopyArgs& args) : table_(table), args_(args) {}

  __device__ Item Find(std::uint32_t item) {
    while (group_ + 1 < args_.group_count && item >= table_.groups[group_ + 1].item_first) ++group_;
    const GroupEntry& group = table_.groups[group_];
    const std::uint32_t local = item - group.item_first;
    const std::uint32_t whole = local / group.split, part = local - whole * group.split;
    const std::uint32_t nth_pair = whole / group.piece_count;
    const PieceEntry& piece = table_.pieces[group.piece_first + whole - nth_pair * group.piece_count];
    const PairEntry pair = table_.pairs[group.pair_first + nth_pair];
    const std::uint64_t offset = std::uint64_t{part} * args_.unit_bytes;
    Item out;
    out.source = reinterpret_cast<const unsigned char*>(piece.source + pair.source * piece.source_stride + offset);
    out.destination = reinterpret_cast<unsigned char*>(piece.destination + pair.destination * piece.destination_stride + offset);
    out.bytes = offset >= piece.bytes ? 0 : static_cast<std::uint32_t>(min(piece.bytes - offset, std::uint64_t{args_.unit_bytes}));
    return out;
  }

 private:
  const TableView table_;
  const CopyArgs& args_;
  std::uint32_t group_ = 0;
};

// The group of pair k: the last group whose pairs start at or before k.
__device__ const GroupEntry& GroupOfPair(const TableView& table, std::uint32_t groups, std::uint32_t pair) {
  std::uint32_t low = 0, high = groups;
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    (table.groups[middle].pair_first <= pair ? low : high) = middle;
  }
  return table.groups[low];
}

// Validates pairs first, first + step, … and reports each.
__device__ void ValidatePairs(const TableView& table, const CopyArgs& args, std::uint32_t first, std::uint32_t step) {
  // Generations that one thread loads at a time, since each load is a round trip to host memory
  constexpr int kBatch = 4;
  for (std::uint32_t base = first; base < args.pair_count; base += kBatch * step) {
    std::uint64_t expected[kBatch] = {}, current[kBatch] = {};
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::uint32_t k = base + i * step;
      if (k >= args.pair_count) continue;
      const GroupEntry& group = GroupOfPair(table, args.group_count, k);
      const PairEntry& pair = table.pairs[k];
      expected[i] = pair.generation;
      if (pair.source < group.generation_count) current[i] = LoadGeneration(group.generations + pair.source * sizeof(std::uint64_t));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::uint32_t k = base + i * step;
      if (k >= args.pair_count) continue;
      const bool valid = expected[i] != 0 && (expected[i] & 1) == 0 && current[i] == expected[i];
      StoreHost(args.statuses + k, valid ? kDeviceValid : kDeviceStale);
    }
  }
}

// Every CUDA block calls this at its end.
__device__ void Finish(const TableView& table, const CopyArgs& args) {
  if (args.report == ReportBy::kNobody) return;
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = gridDim.x == 1 || atomicAdd(args.arrivals, 1u) + 1 == gridDim.x;
    if (last && gridDim.x > 1) {
      *args.arrivals = 0;
      __threadfence();
    }
  }
  __syncthreads();
  if (!last) return;
  if (args.report == ReportBy::kLastBlock) {
    ValidatePairs(table, args, threadIdx.x, blockDim.x);
  } else if (threadIdx.x == 0) {
    StoreHost(args.done, args.done_value);
  }
}

// Copies a table that was passed as a launch argument to device memory for the validation kernel,
// since passing it again would take as long again.
__device__ void KeepTable(const unsigned char* table, const CopyArgs& args, unsigned thread, unsigned threads) {
  if (args.kept_table == nullptr || blockIdx.x + 1 != gridDim.x) return;
  const std::size_t bytes =
      args.group_count * sizeof(GroupEntry) + args.piece_count * sizeof(PieceEntry) + args.pair_count * sizeof(PairEntry);
  const auto* from = reinterpret_cast<const std::uint64_t*>(table);
  auto* to = static_cast<std::uint64_t*>(args.kept_table);
  for (std::uint32_t i = thread; i < bytes / sizeof(std::uint64_t); i += threads) to[i] = from[i];
}

// Copies with one warp, up to kLoadsInFlight words a thread at a time.
template <class Word>
__device__ void CopyByWarp(const Item& item, unsigned lane) {
  const Word* from = reinterpret_cast<const Word*>(item.source);
  Word* to = reinterpret_cast<Word*>(item.destination);
  const std::uint32_t words = item.bytes / sizeof(Word);
  Word held[kLoadsInFlight];
  if (words == kWarp * kLoadsInFlight) {
#pragma unroll
    for (unsigned i = 0; i < kLoadsInFlight; ++i) held[i] = LoadOnce(from + i * kWarp + lane);
#pragma unroll
    for (unsigned i = 0; i < kLoadsInFlight; ++i) to[i * kWarp + lane] = held[i];
    return;
  }
  constexpr unsigned kTailLoads = kLoadsInFlight / 2;
#pragma unroll 1
  for (std::uint32_t first = lane; first < words; first += kTailLoads * kWarp) {
#pragma unroll
    for (unsigned i = 0; i < kTailLoads; ++i) {
      if (first + i * kWarp < words) held[i] = LoadOnce(from + first + i * kWarp);
    }
#pragma unroll
    for (unsigned i = 0; i < kTailLoads; ++i) {
      if (first + i * kWarp < words) to[first + i * kWarp] = held[i];
    }
  }
}

template <class Word, class Table>
__global__ void __launch_bounds__(1024, 1) VectorCopy(const __grid_constant__ CopyArgs args, const __grid_constant__ Table storage) {
  const TableView table(storage.data(), args);
  ItemFinder finder(table, args);
  const unsigned warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
  for (std::uint32_t item = blockIdx.x * warps + threadIdx.x / kWarp; item < args.item_count; item += gridDim.x * warps) {
    CopyByWarp<Word>(finder.Find(item), lane);
  }
  KeepTable(storage.data(), args, threadIdx.x, blockDim.x);
  Finish(table, args);
}

// The validation kernel, which follows a copy kernel in its stream.
template <class Table>
__global__ void __launch_bounds__(kValidationThreads)
    Validate(const __grid_constant__ CopyArgs args, const __grid_constant__ Table storage) {
  ValidatePairs(TableView(storage.data(), args), args, blockIdx.x * blockDim.x + threadIdx.x, gridDim.x * blockDim.x);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

// A ring of stages in shared memory: one thread of one warp fills them from the peer, one thread of
// another empties them into the destination.
struct Ring {
  unsigned char* stages;          // [count][unit_bytes]
  std::uint64_t *filled, *empty;  // mbarriers, [count]
  // [count]: the item in each stage; an item of 0 bytes ends the work
  Item* items;
  unsigned count;
};

struct Turn {
  unsigned stage = 0, phase = 0;
  __device__ void Next(unsigned count) {
    if (++stage < count) return;
    stage = 0;
    phase ^= 1;
  }
};

__device__ void FillRing(const Ring& ring, const TableView& table, const CopyArgs& args, std::uint32_t first, std::uint32_t step) {
  ItemFinder finder(table, args);
  Turn turn;
  for (std::uint32_t i = first; i < args.item_count; i += step) {
    const Item item = finder.Find(i);
    if (item.bytes == 0) continue;
    WaitBarrier(ring.empty + turn.stage, turn.phase ^ 1);
    ring.items[turn.stage] = item;
    ExpectBytes(ring.filled + turn.stage, item.bytes);
    BulkLoad(ring.stages + std::size_t{turn.stage} * args.unit_bytes, item.source, item.bytes, ring.filled + turn.stage);
    turn.Next(ring.count);
  }
  WaitBarrier(ring.empty + turn.stage, turn.phase ^ 1);
  ring.items[turn.stage].bytes = 0;
  ArriveBarrier(ring.filled + turn.stage);
}

__device__ void EmptyRing(const Ring& ring, const CopyArgs& args) {
  // oldest: the stage whose store was issued first of those that may still read it
  Turn turn, oldest;
  for (unsigned issued = 0;; ++issued) {
    WaitBarrier(ring.filled + turn.stage, turn.phase);
    const Item item = ring.items[turn.stage];
    if (item.bytes == 0) break;
    BulkStore(item.destination, ring.stages + std::size_t{turn.stage} * args.unit_bytes, item.bytes);
    turn.Next(ring.count);
    if (issued < kStoresInFlight) continue;
    WaitStoresRead<kStoresInFlight>();
    ArriveBarrier(ring.empty + oldest.stage);
    oldest.Next(ring.count);
  }
  WaitStoresDone();
}

template <class Table>
__global__ void __launch_bounds__(512, 1)
    BulkCopy(const __grid_constant__ CopyArgs args, const __grid_constant__ Table storage, const unsigned rings, const unsigned stages) {
  extern __shared__ __align__(128) unsigned char stage_memory[];
  __shared__ __align__(8) std::uint64_t filled[kMaxStages], empty[kMaxStages];
  __shared__ Item items[kMaxStages];
  const TableView table(storage.data(), args);
  if (threadIdx.x < rings * stages) {
    InitBarrier(filled + threadIdx.x, 1);
    InitBarrier(empty + threadIdx.x, 1);
  }
  FenceBarrierInit();
  __syncthreads();
  const unsigned warp = threadIdx.x / kWarp, nth = warp / 2;
  if (threadIdx.x % kWarp == 0 && nth < rings) {
    const Ring ring{stage_memory + std::size_t{nth} * stages * args.unit_bytes, filled + nth * stages, empty + nth * stages,
                    items + nth * stages, stages};
    if (warp % 2 == 0) {
      FillRing(ring, table, args, blockIdx.x * rings + nth, gridDim.x * rings);
    } else {
      EmptyRing(ring, args);
    }
  }
  if (warp >= 2 * rings) KeepTable(storage.data(), args, threadIdx.x - 2 * rings * kWarp, blockDim.x - 2 * rings * kWarp);
  Finish(table, args);
}

#else

// Never launched on such a GPU, since PrepareCopyKernels reports that it has no bulk copies.
template <class Table>
__global__ void BulkCopy(const __grid_constant__ CopyArgs, const __grid_constant__ Table, const unsigned, const unsigned) {}

#endif

constexpr std::size_t kSmallTable = 1 << 10, kMediumTable = 6 << 10;

// The launches of LaunchCopy and LaunchValidate, for a table of known type.
struct CopyLauncher {
  const KernelChoice& choice;
  const CopyArgs& args;
  cudaStream_t stream;

  template <class Table>
  cudaError_t operator()(const Table& table) const {
    if (choice.kind == KernelKind::kBulk) {
      const std::size_t shared = std::size_t{choice.rings} * choice.stages * choice.unit_bytes;
      if (choice.stages <= kStoresInFlight || choice.rings * choice.stages > kMaxStages) return cudaErrorInvalidValue;
      BulkCopy<<<choice.blocks, choice.threads, shared, stream>>>(args, table, choice.rings, choice.stages);
      return cudaGetLastError();
    }
    switch (choice.word_bytes) {
      case 16: VectorCopy<uint4><<<choice.blocks, choice.threads, 0, stream>>>(args, table); break;
      case 8: VectorCopy<std::uint64_t><<<choice.blocks, choice.threads, 0, stream>>>(args, table); break;
      case 4: VectorCopy<std::uint32_t><<<choice.blocks, choice.threads, 0, stream>>>(args, table); break;
      case 1: VectorCopy<std::uint8_t><<<choice.blocks, choice.threads, 0, stream>>>(args, table); break;
      default: return cudaErrorInvalidValue;
    }
    return cudaGetLastError();
  }
};
struct ValidateLauncher {
  unsigned blocks;
  const CopyArgs& args;
  cudaStream_t stream;

  template <class Table>
  cudaError_t operator()(const Table& table) const {
    Validate<<<blocks, kValidationThreads, 0, stream>>>(args, table);
    return cudaGetLastError();
  }
};

template <std::size_t kBytes, class Launcher>
cudaError_t LaunchInline(std::span<const std::byte> bytes, const Launcher& launch) {
  InlineTable<kBytes> table;
  std::memcpy(table.bytes, bytes.data(), bytes.size());
  return launch(table);
}

template <class Launcher>
cudaError_t LaunchWith(std::span<const std::byte> table, const void* device_table, const Launcher& launch) {
  if (device_table != nullptr) return launch(DeviceTable{static_cast<const unsigned char*>(device_table)});
  if (table.size() <= kSmallTable) return LaunchInline<kSmallTable>(table, launch);
  if (table.size() <= kMediumTable) return LaunchInline<kMediumTable>(table, launch);
  if (table.size() <= kMaxInlineTable) return LaunchInline<kMaxInlineTable>(table, launch);
  return cudaErrorInvalidValue;
}

template <class Table>
cudaError_t PrepareFor(std::uint32_t bulk_shared_bytes) {
  cudaFuncAttributes attributes;
  const void* const kernels[] = {
      reinterpret_cast<const void*>(&VectorCopy<uint4, Table>), reinterpret_cast<const void*>(&VectorCopy<std::uint64_t, Table>),
      reinterpret_cast<const void*>(&VectorCopy<std::uint32_t, Table>), reinterpret_cast<const void*>(&VectorCopy<std::uint8_t, Table>),
      reinterpret_cast<const void*>(&Validate<Table>)};
  for (const void* kernel : kernels) {
    if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess) return error;
  }
  if (bulk_shared_bytes == 0) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(&BulkCopy<Table>), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(bulk_shared_bytes));
}

}  // namespace

cudaError_t PrepareCopyKernels(std::uint32_t& bulk_shared_bytes) {
  bulk_shared_bytes = 0;
  int device = 0, major = 0, shared = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaFuncAttributes bulk{};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&bulk, reinterpret_cast<const void*>(&BulkCopy<DeviceTable>));
  if (error != cudaSuccess) return error;
  // Code made from PTX for an older GPU is the empty variant.
  if (major >= 9 && bulk.ptxVersion >= 90) bulk_shared_bytes = static_cast<std::uint32_t>(shared) - 4096;
  error = PrepareFor<DeviceTable>(bulk_shared_bytes);
  if (error == cudaSuccess) error = PrepareFor<InlineTable<kSmallTable>>(bulk_shared_bytes);
  if (error == cudaSuccess) error = PrepareFor<InlineTable<kMediumTable>>(bulk_shared_bytes);
  if (error == cudaSuccess) error = PrepareFor<InlineTable<kMaxInlineTable>>(bulk_shared_bytes);
  return error;
}

cudaError_t LaunchCopy(const KernelChoice& choice, const CopyArgs& args, std::span<const std::byte> table, const void* device_table,
                       cudaStream_t stream) {
  return LaunchWith(table, device_table, CopyLauncher{choice, args, stream});
}

cudaError_t LaunchValidate(unsigned blocks, const CopyArgs& args, std::span<const std::byte> table, const void* device_table,
                           cudaStream_t stream) {
  return LaunchWith(table, device_table, ValidateLauncher{blocks, args, stream});
}

}  // namespace kvm
