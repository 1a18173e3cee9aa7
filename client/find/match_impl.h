// What a Match holds: sources in key order and the mappings they lie in. Immutable once made.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "client/peers/peers.h"
#include "kvclient/match.h"

namespace kvm {

struct Match::Impl {
  std::vector<BlockSource> sources;
  std::vector<std::uint16_t> mapping_of;  // [sources]: index into `mappings`
  std::vector<std::shared_ptr<const PeerMapping>> mappings;
  MatchEnd end = MatchEnd::kUnavailable;
  std::shared_ptr<const Impl> in_current;  // if the sources are of the registry before: what the present one had of the same keys
};

}  // namespace kvm
