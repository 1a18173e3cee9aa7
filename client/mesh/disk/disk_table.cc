#include "client/mesh/disk/disk_table.h"

namespace kvm::mesh {

bool DiskTable::Contains(const BlockKey& key) const {
  MutexLock lock(mutex_);
  return index_.Find(key) != nullptr;
}

std::size_t DiskTable::LeadingBlocks(std::span<const BlockKey> keys) const {
  MutexLock lock(mutex_);
  std::size_t count = 0;
  while (count < keys.size() && index_.Find(keys[count]) != nullptr) ++count;
  return count;
}

std::optional<DiskPlace> DiskTable::Find(const BlockKey& key) const {
  MutexLock lock(mutex_);
  const DiskBlock* block = index_.Find(key);
  if (block == nullptr) return std::nullopt;
  const auto file = files_.find(block->segment);
  if (file == files_.end() || !file->second) return std::nullopt;
  return DiskPlace{*block, file->second};
}

void DiskTable::Use(std::span<const BlockKey> path) {
  MutexLock lock(mutex_);
  index_.Use(path);
}

DiskChanges DiskTable::TakeChanges(bool all) {
  MutexLock lock(mutex_);
  return index_.TakeChanges(all);
}

void DiskTable::Insert(std::span<const DiskBlock> blocks) {
  MutexLock lock(mutex_);
  index_.Insert(blocks);
}

void DiskTable::Erase(const DiskBlock& block) {
  MutexLock lock(mutex_);
  index_.Erase(block);
}

void DiskTable::EvictFor(std::uint64_t more, std::uint64_t budget) {
  MutexLock lock(mutex_);
  while (index_.bytes() + more > budget && index_.Evict()) ++figures_.evicted_blocks;
}

void DiskTable::AddSegment(std::shared_ptr<SegmentFile> file, std::uint64_t bytes) {
  MutexLock lock(mutex_);
  auto& place = files_[file->segment()];
  index_.SetSegment(file->segment(), bytes);
  place = std::move(file);
}

void DiskTable::ResizeSegment(std::uint64_t segment, std::uint64_t bytes) {
  MutexLock lock(mutex_);
  index_.SetSegment(segment, bytes);
}

void DiskTable::RemoveSegment(std::uint64_t segment) {
  MutexLock lock(mutex_);
  for (const DiskBlock& block : index_.BlocksOf(segment)) index_.Erase(block);
  index_.RemoveSegment(segment);
  files_.erase(segment);
}

std::uint64_t DiskTable::file_bytes() const {
  MutexLock lock(mutex_);
  return index_.file_bytes();
}

std::shared_ptr<SegmentFile> DiskTable::EmptiestSegment() const {
  MutexLock lock(mutex_);
  const std::optional<std::uint64_t> segment = index_.EmptiestSegment();
  return segment ? files_.at(*segment) : nullptr;
}

std::vector<DiskBlock> DiskTable::BlocksOf(std::uint64_t segment) const {
  MutexLock lock(mutex_);
  return index_.BlocksOf(segment);
}

DiskFigures DiskTable::figures() const {
  MutexLock lock(mutex_);
  DiskFigures out = figures_;
  out.blocks = index_.blocks();
  out.bytes = index_.bytes();
  out.file_bytes = index_.file_bytes();
  return out;
}

void DiskTable::CountRead(std::uint64_t bytes) {
  MutexLock lock(mutex_);
  ++figures_.read_blocks;
  figures_.read_bytes += bytes;
}

void DiskTable::CountWritten(std::uint64_t blocks, std::uint64_t bytes, bool moved) {
  MutexLock lock(mutex_);
  (moved ? figures_.moved_blocks : figures_.written_blocks) += blocks;
  figures_.written_bytes += bytes;
}

void DiskTable::CountBad() {
  MutexLock lock(mutex_);
  ++figures_.bad_records;
}

void DiskTable::CountFailedRead() {
  MutexLock lock(mutex_);
  ++figures_.failed_reads;
}

}  // namespace kvm::mesh
