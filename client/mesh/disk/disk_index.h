// DiskIndex: which block lies where in the disk cache, how many bytes of each segment still count,
// and which blocks leave.
//
// Memory only, about 120 bytes a block and what its eviction policy takes. A policy needs to know
// how many blocks a cache holds, which follows from their sizes: while the cache fills, it is made
// anew with twice the capacity whenever it is full, and once blocks leave, with the capacity that
// there turned out to be. A call that throws, for lack of memory, has left some of its blocks out;
// counts and places agree all the same. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "client/mesh/directory/key_change.h"
#include "client/mesh/disk/record.h"
#include "daemon/policy/policies.h"
#include "kvm/block_key.h"
#include "proto/base/secret_hash.h"

namespace kvm::mesh {

// One block of the disk cache, and where its record begins.
struct DiskBlock {
  BlockKey key;
  std::uint64_t parent_lo = 0;
  std::uint32_t depth = 0;
  std::uint64_t block_bytes = 0;
  std::uint64_t segment = 0;
  std::uint64_t offset = 0;
};

// What has come and gone, in order.
struct DiskChanges {
  bool all = false;  // `keys` are all that there are; else what has changed
  std::vector<KeyChange> keys;
};

class DiskIndex {
 public:
  // `first_capacity`: blocks for which the policy has room at first.
  explicit DiskIndex(policy::PolicyKind kind, std::uint32_t first_capacity = kFirstCapacity);

  // Null: it is not there. Valid until the next change.
  const DiskBlock* Find(const BlockKey& key) const;
  std::size_t blocks() const noexcept { return slots_.size(); }
  // Of all records that count.
  std::uint64_t bytes() const noexcept { return bytes_; }

  // Consecutive blocks of a prefix, or any others. A block that is there already has another place
  // from now on.
  void Insert(std::span<const DiskBlock> blocks);
  void Erase(const BlockKey& key);
  // Only if it still lies there.
  void Erase(const DiskBlock& block);
  // A worker asked for these blocks, from the first of a prefix on: those that are here were used.
  void Use(std::span<const BlockKey> path);
  // The policy's choice leaves. Empty: there is no block.
  std::optional<DiskBlock> Evict();

  // What has changed since the last call. All that there is if `all`, if too much has changed, and
  // the first time. A call that throws has changed nothing.
  DiskChanges TakeChanges(bool all);

  // A segment's file has so many bytes, of which those of its blocks count.
  void SetSegment(std::uint64_t segment, std::uint64_t bytes) { segments_[segment].size = bytes; }
  void RemoveSegment(std::uint64_t segment) { segments_.erase(segment); }
  // Of all segments.
  std::uint64_t file_bytes() const noexcept;
  // The segment whose removal frees most, after its blocks have been written elsewhere. Empty: none
  // would free more than its header.
  std::optional<std::uint64_t> EmptiestSegment() const;
  // The blocks that lie in it, by offset.
  std::vector<DiskBlock> BlocksOf(std::uint64_t segment) const;

  static constexpr std::uint32_t kFirstCapacity = 16384;
  static constexpr std::size_t kMaxChanges = std::size_t{1} << 16;

 private:
  struct Entry {
    DiskBlock block;         // of 0 bytes: the slot is free
    std::uint64_t used = 0;  // a number that grows with each use
  };
  struct Segment {
    std::uint64_t size = 0;
    std::uint64_t live = 0;  // bytes of records that count
  };

  void InsertRun(std::span<const DiskBlock> run);
  void InsertOne(const DiskBlock& block);
  void Place(policy::Slot slot, const DiskBlock& block, Segment& segment) noexcept;
  void Drop(policy::Slot slot);
  void Changed(const BlockKey& key, bool here) noexcept;
  // With a policy of `capacity` blocks, to which those that are here are new, the latest used last.
  void Rebuild(std::size_t capacity);
  // A policy that orders by time alone must not let a block leave before those behind it.
  void UseParents(std::uint64_t parent_lo);

  const policy::PolicyKind kind_;
  std::unique_ptr<policy::EvictionPolicy> policy_;
  std::vector<Entry> entries_;  // by slot
  std::vector<policy::Slot> free_;
  std::unordered_map<std::uint64_t, policy::Slot, SecretHash> slots_;  // by BlockKey::lo
  std::map<std::uint64_t, Segment> segments_;
  std::uint64_t bytes_ = 0, uses_ = 0;
  bool evicts_ = false;
  std::vector<KeyChange> changes_;
  bool all_changed_ = true;  // changes_ does not have all
};

}  // namespace kvm::mesh
