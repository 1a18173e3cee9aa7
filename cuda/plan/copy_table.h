// The input of one copy kernel launch: a table of groups, pieces and block pairs, and the addresses
// to which it reports.
//
// Written by the host (transfer_plan.cc), read by the kernels (copy_kernels.cu); plain data, no
// CUDA types.
//
//   table = [GroupEntry × groups][PieceEntry × pieces][PairEntry × pairs]
//
// A group is the work from one source region. Its work is copy_pairs × pieces × split items: item i
// moves part i % split of piece (i / split) % pieces of pair i / split / pieces. Pairs behind the
// first copy_pairs of a group were copied by the copy engine and are only validated.
#pragma once

#include <cstdint>

namespace kvm {

struct GroupEntry {
  // Device address of the counters; 0 with generation_count 0: all stale
  std::uint64_t generations = 0;
  std::uint32_t generation_count = 0;
  std::uint32_t item_first = 0;
  std::uint32_t piece_first = 0;
  std::uint32_t piece_count = 0;
  std::uint32_t pair_first = 0;
  std::uint32_t pair_count = 0;
  std::uint32_t copy_pairs = 0;
  std::uint32_t split = 1;
};
static_assert(sizeof(GroupEntry) == 40);

struct PieceEntry {
  std::uint64_t source = 0;  // address in block 0
  std::uint64_t source_stride = 0;
  std::uint64_t destination = 0;
  std::uint64_t destination_stride = 0;
  std::uint64_t bytes = 0;
};
static_assert(sizeof(PieceEntry) == 40);

struct PairEntry {
  std::uint32_t source = 0;
  std::uint32_t destination = 0;
  std::uint64_t generation = 0;  // the generation that the source must have
};
static_assert(sizeof(PairEntry) == 16);

// Which CUDA block or kernel reports that all items were copied, and how.
enum class ReportBy : std::uint32_t {
  kNobody,     // a validation kernel follows
  kDoneWord,   // the last CUDA block writes done_value; the CPU validates, if validation is needed
  kLastBlock,  // the last CUDA block validates and writes statuses
};

struct CopyArgs {
  std::uint32_t group_count = 0;
  std::uint32_t piece_count = 0;
  std::uint32_t pair_count = 0;
  std::uint32_t item_count = 0;  // of all groups
  std::uint32_t unit_bytes = 0;  // most bytes of one item
  ReportBy report = ReportBy::kNobody;
  // Device memory to which the copy kernel copies its table for the validation kernel; null: it
  // does not
  void* kept_table = nullptr;
  std::uint32_t done_value = 0;
  // [pair_count], host memory, zeroed by the host; a status that is not 0 is final
  std::uint8_t* statuses = nullptr;
  std::uint32_t* done = nullptr;      // host memory
  std::uint32_t* arrivals = nullptr;  // device memory, 0 between launches
};

inline constexpr std::uint8_t kDeviceValid = 1, kDeviceStale = 2;  // BlockStatus of the same names

}  // namespace kvm
