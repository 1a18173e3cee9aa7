// Counts the hits of a cache and those that an LRU cache of its capacity would have had, and says
// when to do as that one does.
//
// When LRU's lead and the hits to expect from blocks that only the LRU cache would hold exceed
// 0.0015 of the blocks asked for, follows_lru() is true until the sum is less again.
#pragma once

#include <cstdint>

namespace kvm::policy {

class LruGuard {
 public:
  explicit LruGuard(std::uint32_t capacity) : capacity_(capacity) {}

  // A request of so many `blocks`, of which each cache has the first so many.
  void OnRequest(std::uint64_t leading, std::uint64_t leading_lru, std::uint64_t blocks);
  // A block was used that the LRU cache has.
  void UsedInLru() noexcept { ++lru_used_; }
  // A block left the LRU cache. `absent`: it is not in this cache either.
  void LeftLru(bool absent) noexcept {
    ++lru_left_;
    if (!absent) return;
    --absent_;
    ++spared_;
  }
  // A block that the LRU cache has left this one, or came back.
  void BecameAbsent() noexcept { ++absent_; }
  void CameBack() noexcept {
    --absent_;
    ++missed_;
  }

  bool follows_lru() const noexcept { return follows_lru_; }
  std::uint64_t hits() const noexcept { return hits_; }
  std::uint64_t lru_hits() const noexcept { return lru_hits_; }
  // The blocks of a request share their fate: as many are one observation.
  double BlocksOfRequest() const noexcept;

 private:
  const std::uint32_t capacity_;
  std::uint64_t requests_ = 0, asked_ = 0, hits_ = 0, lru_hits_ = 0;
  double lead_ = 0;           // hits more than LRU, at most capacity
  std::uint64_t absent_ = 0;  // blocks in the LRU cache that are not here
  // Uses of blocks that the LRU cache had, blocks that left it
  double lru_used_ = 0, lru_left_ = 0;
  // What became of the absent: used while LRU had them, or left LRU as well
  double missed_ = 0, spared_ = 0;
  bool follows_lru_ = false;
};

}  // namespace kvm::policy
