// The content of a Match: sources in key order, and the mappings in which they lie. Immutable.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "client/peers/peers.h"
#include "kvclient/match.h"

namespace kvm {

struct Match::Impl {
  std::vector<BlockSource> sources;
  std::vector<std::uint16_t> mapping_of;  // [sources]: index into `mappings`
  std::vector<std::shared_ptr<const PeerMapping>> mappings;
  MatchEnd end = MatchEnd::kUnavailable;
  std::optional<BeingComputed> being_computed;
  // Which of the sources are of ClientOptions::verify_one_in's sample, in ascending order
  std::vector<std::uint32_t> sampled;
  // If the sources are from the previous registry: the match of the same keys in the current one
  std::shared_ptr<const Impl> in_current;
};

}  // namespace kvm
