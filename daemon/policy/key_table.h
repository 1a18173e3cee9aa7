// Key → index of a node that holds the key. Open addressing with linear probing, at most two thirds
// full, deletion by shifting back. The table has 32 bits of each key beside the index, so a lookup
// rarely reads a wrong node.
#pragma once

#include <bit>
#include <cstdint>

#include "daemon/policy/eviction_policy.h"
#include "daemon/policy/huge_pages.h"
#include "daemon/policy/linked_list.h"

namespace kvm::policy {

class KeyTable {
 public:
  explicit KeyTable(std::uint64_t max_keys) : entries_(std::bit_ceil(max_keys + max_keys / 2 + 2)), mask_(entries_.size() - 1) {}

  // `key_of(index)` returns a node's key. kNil: the table does not have the key.
  template <class KeyOf>
  std::uint32_t Find(Key key, KeyOf&& key_of) const {
    for (std::uint64_t at = Home(Tag(key));; at = (at + 1) & mask_) {
      const Entry& entry = entries_[at];
      if (entry.index == kNil) return kNil;
      if (entry.tag == Tag(key) && key_of(entry.index) == key) return entry.index;
    }
  }

  [[gnu::always_inline]] void Prefetch(Key key) const { __builtin_prefetch(&entries_[Home(Tag(key))]); }
  // A node that may hold the key, to be prefetched. kNil: no node does.
  std::uint32_t Candidate(Key key) const {
    std::uint64_t at = Home(Tag(key));
    while (entries_[at].index != kNil && entries_[at].tag != Tag(key)) at = (at + 1) & mask_;
    return entries_[at].index;
  }

  // Precondition: the table does not have the key.
  void Insert(Key key, std::uint32_t index) {
    std::uint64_t at = Home(Tag(key));
    while (entries_[at].index != kNil) at = (at + 1) & mask_;
    entries_[at] = {Tag(key), index};
  }

  // Precondition: the table has the key.
  void Erase(Key key, std::uint32_t index) {
    std::uint64_t hole = Home(Tag(key));
    while (entries_[hole].index != index) hole = (hole + 1) & mask_;
    for (std::uint64_t at = (hole + 1) & mask_; entries_[at].index != kNil; at = (at + 1) & mask_) {
      if (((at - Home(entries_[at].tag)) & mask_) < ((at - hole) & mask_)) continue;
      entries_[hole] = entries_[at];
      hole = at;
    }
    entries_[hole] = {};
  }

 private:
  struct Entry {
    std::uint32_t tag = 0;
    std::uint32_t index = kNil;
  };

  // The key is multiplied, so that keys which are no hashes (in tests and traces) spread as well.
  // The tag alone determines where an entry belongs, so that Erase reads no nodes.
  static std::uint32_t Tag(Key key) noexcept { return static_cast<std::uint32_t>((key * 0x9E3779B97F4A7C15ULL) >> 32); }
  std::uint64_t Home(std::uint32_t tag) const noexcept { return tag & mask_; }

  HugeVector<Entry> entries_;
  std::uint64_t mask_;
};

}  // namespace kvm::policy
