// HotPrefixes: the prefixes of a domain that are imported most, as far as clients report them.
//
// OffloadService notes the last block of each import that a client has reported, and the answer to
// a status query lists what was noted most. A prefix that many prompts begin with is rarely an end
// itself: kvctl hot adds up the ends along the parents in the index, which it reads itself.
//
// Bounded: where more ends are reported than fit, those that were used least and longest ago leave.
// Uses fade, so that what was hot yesterday does not hide what is today. Single-threaded.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kvm/block_key.h"

namespace kvm::daemon {

// After so long a use counts half.
inline constexpr std::chrono::minutes kHotHalfLife{10};

class HotPrefixes {
 public:
  static constexpr std::size_t kMost = 1024;

  struct Prefix {
    BlockKey key;             // of its last block
    std::uint32_t depth = 0;  // blocks before that one
    std::string model_id;
    std::uint64_t uses = 0;
    std::uint64_t blocks = 0;  // of the imports that ended there
  };

  // One import of `blocks` blocks that ended at this one.
  void Note(const BlockKey& key, std::uint32_t depth, const std::string& model_id, std::uint32_t blocks,
            std::chrono::steady_clock::time_point now);
  // At most `most`, the most used first.
  std::vector<Prefix> List(std::size_t most, std::chrono::steady_clock::time_point now);
  std::size_t size() const noexcept { return prefixes_.size(); }

 private:
  using Words = std::pair<std::uint64_t, std::uint64_t>;  // of a key
  struct Noted {
    Prefix prefix;
    std::uint64_t turn = 0;  // of the last use
  };

  void Fade(std::chrono::steady_clock::time_point now);

  std::map<Words, Noted> prefixes_;
  // uses, turn: the first leaves first
  std::set<std::tuple<std::uint64_t, std::uint64_t, Words>> by_use_;
  std::uint64_t turn_ = 0;
  std::chrono::steady_clock::time_point faded_{};
};

}  // namespace kvm::daemon
