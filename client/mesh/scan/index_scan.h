// IndexScan: what has changed in kvmd's index since it was last read.
//
// It remembers the version of each slot, and what the slot said then, and reads only slots that
// have another version now, or whose region is used in another way: a scan costs a look at each
// slot's version, and work for what has changed. A slot that is being written counts as it was,
// until the next scan. An entry that moves during a scan may be missed or seen twice by it; the
// next one finds both slots changed. Memory: 36 bytes a slot and about 30 for each key in host
// memory. Not thread-safe.
#pragma once

#include <boost/unordered/unordered_flat_map.hpp>
#include <cstdint>
#include <optional>
#include <vector>

#include "client/mesh/scan/scan_result.h"
#include "proto/base/secret_hash.h"
#include "proto/shm/registry_view.h"
#include "proto/shm/slot_versions.h"

namespace kvm::mesh {

// What a row of the region table means for its blocks.
struct RowUse {
  std::uint32_t served_epoch = 0;    // of the region; 0: its blocks are not served
  std::optional<BlockShape> cached;  // a slab's, if blocks are to be stored
  std::uint32_t held_epoch = 0;      // 0: routers are not told of its blocks
  std::uint16_t model = 0;           // index into HeldChanges::models
  Media medium = 0;
  friend bool operator==(const RowUse&, const RowUse&) = default;
};

class IndexScan {
 public:
  // Nothing is known of the index any more: the next Read says all that there is.
  void Forget() noexcept;
  // Fills in `out`, except for models and shapes. `rows`: of the region table, as they are now. If
  // it throws, call Forget.
  void Read(const IndexReader& index, const SlotVersions& versions, std::vector<RowUse> rows, const ScanPlan& plan, ScanResult& out);
  // False: a slot was being written, so there is more to read.
  bool complete() const noexcept { return complete_; }

 private:
  static constexpr std::uint32_t kNoRow = ~std::uint32_t{0};
  static constexpr std::uint8_t kServed = 1, kCached = 2;

  struct Seen {
    BlockKey key;
    std::uint32_t row = kNoRow;  // of the region table; kNoRow: the slot is empty
    std::uint32_t position = 0;  // a hash of the block's parent and depth
    std::uint16_t model = 0;
    std::uint8_t uses = 0;  // kServed, kCached
    Media medium = 0;       // in which routers are told that it is; 0: they are not
    friend bool operator==(const Seen&, const Seen&) = default;
  };
  // Of one key.
  struct Replicas {
    std::uint32_t served = 0;
    std::uint16_t cached = 0;
    bool told = false;   // ScanResult::keys has said that the key is here
    bool named = false;  // in ScanResult::unstored, and still in the host cache
  };

  void ReadSlot(const IndexReader& index, const SlotVersions& versions, std::uint64_t slot, std::uint32_t version, const ScanPlan& plan,
                ScanResult& out);
  Seen See(const IndexEntry& entry) const;
  void Leave(const Seen& seen, ScanResult& out);
  void Enter(const Seen& seen, const IndexEntry& entry, const ScanPlan& plan, ScanResult& out);
  void LookAtCached(const IndexReader& index, const ScanPlan& plan, ScanResult& out);
  void OfferCached(const IndexEntry& entry, const BlockShape& shape, const ScanPlan& plan, ScanResult& out);
  // Keeps the oldest `most` ones, in order.
  static void KeepOldest(std::vector<CachedBlock>& blocks, std::size_t most);
  void TellKeys(ScanResult& out);

  std::vector<std::uint32_t> versions_;  // by slot; empty: nothing is known
  std::vector<Seen> seen_;               // by slot, as of that version
  std::vector<RowUse> rows_;             // as of the last Read
  boost::unordered_flat_map<BlockKey, Replicas, SecretHash> replicas_;
  std::vector<BlockKey> touched_;  // by this Read
  bool complete_ = true;
};

}  // namespace kvm::mesh
