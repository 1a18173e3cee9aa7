// Which entries of an index descend from a key, by following parents.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "kvm/block_key.h"
#include "proto/shm/registry_view.h"

namespace kvm::ctl {

// A snapshot of the parent relation of all entries. Parents are known by 64 of their 128 bits,
// which is enough for a listing: among 2^24 entries two agree with a probability below 2^-17.
class Ancestry {
 public:
  // Reads every slot of the index once.
  explicit Ancestry(const IndexReader& index);

  // Whether `key` is `ancestor`, or reaches it through parents that are present. Results are
  // cached.
  bool Descends(std::uint64_t key_lo, std::uint64_t ancestor_lo);

 private:
  enum class Verdict : std::uint8_t { kUnknown, kYes, kNo };
  struct Node {
    std::uint64_t parent_lo = 0;
    Verdict verdict = Verdict::kUnknown;
  };
  std::unordered_map<std::uint64_t, Node> nodes_;
  std::uint64_t asked_lo_ = 0;
};

}  // namespace kvm::ctl
