// Joining: asking this node's kvmd-mesh (docs/MESH.md) to bring the blocks of a prefix here from
// other nodes.
//
// Blocks that have been joined are local: kvmd-mesh has published them in a region of its own, and
// Find and Import treat them like those of any other worker. A call never fails because of the
// network. Whatever goes wrong, the prefix is only shorter, and `reason` says why.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

#include "kvclient/types.h"

namespace kvm {

// How long a join waits, and what it may ask for.
struct JoinOptions {
  // The call returns by then, whatever kvmd-mesh and its peers do. What arrives later is published
  // all the same, and found by a later Find.
  Deadline deadline = After(std::chrono::milliseconds(500));
  // Nothing is fetched unless this many leading blocks can be expected to be here afterwards.
  std::size_t min_blocks = 1;
  // How fast this worker computes the KV states of a prompt, in tokens per second. kvmd-mesh then
  // fetches blocks from a peer only if that is expected to take less time than computing them, by
  // the rate at which blocks have come from that peer. 0: unknown, so that it always fetches.
  double prefill_tokens_per_s = 0;
  // The node to ask first, by the name that kvmd-mesh's configuration has for it, or by its IP
  // address there; empty: the one that seems to have the most blocks. At most 63 bytes are used.
  std::string source_hint{};
  // kvmd-mesh's socket; empty: /run/kvmd-mesh/UID/mesh.sock.
  std::string mesh_socket{};
};

// What a join has brought.
struct JoinOutcome {
  std::size_t blocks = 0;   // leading ones that Find finds here now
  std::size_t fetched = 0;  // how many blocks this call brought here
  // Why there are no more, for people: no peer has them, the peer was busy, computing is faster, …
  // Empty if all are here.
  std::string reason;
};

}  // namespace kvm
