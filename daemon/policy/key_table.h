// Key → index of a node that holds the key. Open addressing with linear probing, at most two thirds
// full, deletion by shifting back. The table has 32 bits of each key's hash beside the index, so a
// lookup rarely reads a wrong node. Clients choose the keys, so the hash is a secret one.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "daemon/policy/eviction_policy.h"
#include "daemon/policy/huge_pages.h"
#include "daemon/policy/linked_list.h"
#include "proto/base/secret_hash.h"

namespace kvm::policy {

class KeyTable {
 public:
  explicit KeyTable(std::uint64_t max_keys) : entries_(std::bit_ceil(max_keys + max_keys / 2 + 2)), mask_(entries_.size() - 1) {}

  // `key_of(index)` returns a node's key. kNil: the table does not have the key.
  template <class KeyOf>
  std::uint32_t Find(Key key, KeyOf&& key_of) const {
    for (std::uint64_t at = Home(Tag(key));; at = (at + 1) & mask_) {
      const Entry& entry = entries_[at];
      if (entry.empty()) return kNil;
      if (entry.tag == Tag(key) && key_of(entry.index()) == key) return entry.index();
    }
  }

  [[gnu::always_inline]] void Prefetch(Key key) const { __builtin_prefetch(&entries_[Home(Tag(key))]); }
  // A node that may hold the key, to be prefetched. kNil: no node does.
  std::uint32_t Candidate(Key key) const {
    std::uint64_t at = Home(Tag(key));
    while (!entries_[at].empty() && entries_[at].tag != Tag(key)) at = (at + 1) & mask_;
    return entries_[at].index();
  }

  // Precondition: the table does not have the key.
  void Insert(Key key, std::uint32_t index) {
    std::uint64_t at = Home(Tag(key));
    while (!entries_[at].empty()) at = (at + 1) & mask_;
    entries_[at] = {Tag(key), index + 1};
  }

  // Precondition: the table has the key.
  void Erase(Key key, std::uint32_t index) {
    std::uint64_t hole = Home(Tag(key));
    while (entries_[hole].index() != index) hole = (hole + 1) & mask_;
    for (std::uint64_t at = (hole + 1) & mask_; !entries_[at].empty(); at = (at + 1) & mask_) {
      if (((at - Home(entries_[at].tag)) & mask_) < ((at - hole) & mask_)) continue;
      entries_[hole] = entries_[at];
      hole = at;
    }
    entries_[hole] = {};
  }

  // The most entries side by side, which bounds the steps of a search. For tests.
  std::uint64_t LongestRun() const {
    std::uint64_t longest = 0, run = 0;
    for (std::uint64_t at = 0; at <= mask_; ++at) longest = std::max(longest, run = entries_[at].empty() ? 0 : run + 1);
    return longest;
  }

 private:
  struct Entry {
    bool empty() const noexcept { return index_and_1 == 0; }
    std::uint32_t index() const noexcept { return index_and_1 - 1; }  // empty: kNil

    std::uint32_t tag = 0;
    std::uint32_t index_and_1 = 0;
  };

  // The tag alone determines where an entry belongs, so that Erase reads no nodes.
  std::uint32_t Tag(Key key) const noexcept { return static_cast<std::uint32_t>(hash_(key) >> 32); }
  std::uint64_t Home(std::uint32_t tag) const noexcept { return tag & mask_; }

  SecretHash hash_;
  ZeroedArray<Entry> entries_;
  std::uint64_t mask_;
};

}  // namespace kvm::policy
