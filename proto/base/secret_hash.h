// SecretHash: a hash of keys that others choose, for tables in memory.
//
// A client that knows how a table's places follow from keys can choose keys that share one, and
// each search then steps over all of them. These places follow from random numbers as well, which
// the process draws once and no client sees: of n keys in m places, about n / m share one, whatever
// keys they are.
//
// Source: the folded multiplication of wyhash, Wang Yi, https://github.com/wangyi-fudan/wyhash
// (public domain).
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>

#include "kvm/block_key.h"

namespace kvm {

class SecretHash {
 public:
  using is_avalanching = void;  // Boost's tables need not mix it further

  SecretHash() : secret_(OfProcess()) {}

  std::uint64_t operator()(std::uint64_t value) const noexcept {
    __extension__ typedef unsigned __int128 Wide;
    const Wide product = static_cast<Wide>(value ^ secret_.added) * secret_.factor;
    return static_cast<std::uint64_t>(product >> 64) ^ static_cast<std::uint64_t>(product);
  }
  std::size_t operator()(const BlockKey& key) const noexcept { return (*this)((*this)(key.lo) ^ key.hi); }

 private:
  struct Secret {
    std::uint64_t added = 0, factor = 1;
  };

  static const Secret& OfProcess() {
    static const Secret secret = [] {
      std::random_device random;
      const auto draw = [&] { return static_cast<std::uint64_t>(random()) << 32 | random(); };
      return Secret{draw(), draw() | 1};
    }();
    return secret;
  }

  Secret secret_;
};

}  // namespace kvm
