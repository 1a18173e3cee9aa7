// DiskReader: copies blocks from the disk cache into memory of the caller's, and checks each one.
//
// A block that does not have its key, shape, length and checksum, or whose record is damaged, is
// dropped from the table and counted. Not thread-safe: of the thread that reads.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "client/mesh/disk/block_io.h"
#include "client/mesh/disk/disk_health.h"
#include "client/mesh/disk/disk_table.h"

namespace kvm::mesh {

enum class DiskReadEnd : std::uint8_t { kGood, kNotHere, kBad, kFailed };

struct DiskRead {
  BlockKey key;
  std::byte* into = nullptr;  // shape.block_bytes; holds anything unless the end is kGood
  DiskReadEnd end = DiskReadEnd::kNotHere;
  std::uint64_t checksum = 0;  // of the bytes, if the end is kGood
};

class DiskReader {
 public:
  DiskReader(DiskTable& table, DiskHealth& health, std::unique_ptr<BlockIo> io) : table_(table), health_(health), io_(std::move(io)) {}

  // Blocks as `shape` says. Returns when no memory of the caller's is written any more, also by an
  // exception, which is a lack of memory: no read is good then.
  void Read(const BlockShape& shape, std::span<DiskRead> reads);

 private:
  struct Job;
  DiskReadEnd Check(Job& job, const BlockShape& shape) const;
  void Finish(Job& job, const IoRequest& request, const BlockShape& shape);

  DiskTable& table_;
  DiskHealth& health_;
  std::unique_ptr<BlockIo> io_;
};

}  // namespace kvm::mesh
