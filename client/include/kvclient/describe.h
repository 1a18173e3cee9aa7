// Describing: telling this node's kvmd-mesh the token ids of blocks, for routers (docs/MESH.md).
//
// A block's key does not say which tokens it stands for, and routers find prefixes by tokens. Where
// kvmd-mesh publishes events, it tells routers of the blocks that workers have described.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

#include "kvclient/types.h"

namespace kvm {

// How long a description may take, and what else belongs to it.
struct DescribeOptions {
  // The call returns by then.
  Deadline deadline = After(std::chrono::milliseconds(500));
  // Name of the LoRA adapter with which the blocks were computed; empty: without one. At most 512
  // bytes.
  std::string adapter{};
  // kvmd-mesh's socket; empty: /run/kvmd-mesh/UID/mesh.sock.
  std::string mesh_socket{};
};

// What kvmd-mesh has made of a description.
struct DescribeOutcome {
  // False: it publishes no events, so there is no use in telling it.
  bool wanted = false;
  std::size_t taken = 0;  // leading blocks that it has taken; fewer than all if too many wait
  // A number of the kvmd-mesh process that has answered: another one, that was started since, knows
  // nothing of what this one was told.
  std::uint64_t process = 0;
};

}  // namespace kvm
