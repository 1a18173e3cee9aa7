// DiskTable: the disk cache's index and its open segments, shared by the threads that read, write
// and ask. It counts what happens, too. No call waits for a disk. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "client/mesh/disk/disk_index.h"
#include "client/mesh/disk/segment_file.h"
#include "proto/base/thread_safety.h"

namespace kvm::mesh {

struct DiskPlace {
  DiskBlock block;
  std::shared_ptr<SegmentFile> file;
};

struct DiskFigures {
  std::uint64_t blocks = 0, bytes = 0;  // that can be read
  std::uint64_t file_bytes = 0;         // of all files, with what is reserved
  std::uint64_t read_blocks = 0, read_bytes = 0;
  std::uint64_t written_blocks = 0, written_bytes = 0;
  std::uint64_t moved_blocks = 0;  // written again, so that a segment could be removed
  std::uint64_t evicted_blocks = 0;
  std::uint64_t bad_records = 0;  // that were found damaged and dropped
  std::uint64_t failed_reads = 0;
};

class DiskTable {
 public:
  explicit DiskTable(policy::PolicyKind kind) : index_(kind) {}

  bool Contains(const BlockKey& key) const KVM_EXCLUDES(mutex_);
  // How many of `keys` from the first one on are there, without a gap.
  std::size_t LeadingBlocks(std::span<const BlockKey> keys) const KVM_EXCLUDES(mutex_);
  std::optional<DiskPlace> Find(const BlockKey& key) const KVM_EXCLUDES(mutex_);
  void Use(std::span<const BlockKey> path) KVM_EXCLUDES(mutex_);
  // As DiskIndex has it.
  DiskChanges TakeChanges(bool all) KVM_EXCLUDES(mutex_);

  // Blocks of one segment, which has been added.
  void Insert(std::span<const DiskBlock> blocks) KVM_EXCLUDES(mutex_);
  // If it still lies there.
  void Erase(const DiskBlock& block) KVM_EXCLUDES(mutex_);
  // Blocks leave until those that stay and `more` bytes are at most `budget`.
  void EvictFor(std::uint64_t more, std::uint64_t budget) KVM_EXCLUDES(mutex_);

  void AddSegment(std::shared_ptr<SegmentFile> file, std::uint64_t bytes) KVM_EXCLUDES(mutex_);
  void ResizeSegment(std::uint64_t segment, std::uint64_t bytes) KVM_EXCLUDES(mutex_);
  // Its blocks leave the table, too.
  void RemoveSegment(std::uint64_t segment) KVM_EXCLUDES(mutex_);
  std::uint64_t file_bytes() const KVM_EXCLUDES(mutex_);
  // As DiskIndex has it; null: none.
  std::shared_ptr<SegmentFile> EmptiestSegment() const KVM_EXCLUDES(mutex_);
  std::vector<DiskBlock> BlocksOf(std::uint64_t segment) const KVM_EXCLUDES(mutex_);

  DiskFigures figures() const KVM_EXCLUDES(mutex_);
  void CountRead(std::uint64_t bytes) KVM_EXCLUDES(mutex_);
  void CountWritten(std::uint64_t blocks, std::uint64_t bytes, bool moved) KVM_EXCLUDES(mutex_);
  void CountBad() KVM_EXCLUDES(mutex_);
  void CountFailedRead() KVM_EXCLUDES(mutex_);

 private:
  mutable Mutex mutex_;
  DiskIndex index_ KVM_GUARDED_BY(mutex_);
  std::map<std::uint64_t, std::shared_ptr<SegmentFile>> files_ KVM_GUARDED_BY(mutex_);
  DiskFigures figures_ KVM_GUARDED_BY(mutex_);
};

}  // namespace kvm::mesh
