// DiskWriter: appends blocks to the disk cache's files, within its bound.
//
// All files together, with what is reserved for the open one, never have more than the bound.
// Blocks leave by the eviction policy before others are written; their bytes come free when the
// segment that has most of them is removed, after those of its blocks that count have been appended
// again. Records lie one behind another without a gap: if one can't be written, those after it are
// not kept either. Nothing is flushed: what a crash takes away was a cache. Not thread-safe: of the
// thread that writes.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/mesh/disk/block_io.h"
#include "client/mesh/disk/disk_directory.h"
#include "client/mesh/disk/disk_health.h"
#include "client/mesh/disk/disk_recovery.h"
#include "client/mesh/disk/disk_table.h"
#include "client/mesh/disk/write_pace.h"

namespace kvm::mesh {

// A block that is to be written. Its memory is not changed meanwhile.
struct NewDiskBlock {
  BlockKey key;
  std::uint64_t parent_lo = 0;
  std::uint32_t depth = 0;
  BlockShape shape;
  const std::byte* bytes = nullptr;  // shape.block_bytes
  std::uint64_t checksum = 0;
};

class DiskWriter {
 public:
  DiskWriter(DiskTable& table, DiskHealth& health, const DiskDirectory& directory, WritePace& pace, std::uint64_t limit_bytes);

  // First. Appends go on behind the newest segment that has been recovered.
  void Start(std::string domain, std::unique_ptr<BlockIo> io, const RecoveredFiles& recovered);
  // Writes those that are not there yet, in order. kUnsupported: a block is larger than a sixteenth
  // of the bound. kCancelled: the pace was stopped. kResourceExhausted, kSystem: the disk. What was
  // written before an error stays.
  [[nodiscard]] Status Append(std::span<const NewDiskBlock> blocks);

  std::uint64_t segment_bytes() const noexcept { return segment_bytes_; }

 private:
  struct Pending;
  // A block with its bytes, as a record is made of it.
  struct Source {
    RecordHeader header;
    const std::byte* bytes = nullptr;
  };

  [[nodiscard]] Status Write(std::span<const Source> blocks, bool moving);
  [[nodiscard]] Status WriteBatch(std::span<const Source> blocks, bool moving);
  // An open segment that has so many bytes left.
  [[nodiscard]] Status MakeRoom(std::uint64_t bytes, bool moving);
  [[nodiscard]] Status OpenSegment(std::uint64_t bytes);
  void CloseSegment();
  // Removes the segment that frees most. kResourceExhausted: none frees anything.
  [[nodiscard]] Status CleanOne();
  [[nodiscard]] Status MoveBlocks(const SegmentFile& from, std::span<const DiskBlock> blocks);

  DiskTable& table_;
  DiskHealth& health_;
  const DiskDirectory& directory_;
  WritePace& pace_;
  const std::uint64_t limit_bytes_, segment_bytes_, budget_bytes_;
  std::string domain_;
  std::unique_ptr<BlockIo> io_;
  std::shared_ptr<SegmentFile> open_;  // appends go to it
  std::uint64_t end_ = 0;              // of its last record
  std::uint64_t reserved_ = 0;         // bytes that it may get
  std::uint64_t next_segment_ = 1;
};

}  // namespace kvm::mesh
