// Messages between the coordinator of a replay and its workers, over a Channel, in this order:
//
//   coordinator → worker   WorkerConfig                       worker → coordinator   WorkerReady
//   coordinator → worker   MeetPeers, once all are ready      worker → coordinator   PeersMet
//   coordinator → worker   ServeRequest, then its hash ids,   worker → coordinator   ServeReply
//   each
//                          kIdsPerMessage a message; repeated
//   coordinator → worker   ServeRequest with finish set       worker → coordinator   WorkerSummary
//
// A worker that can't go on sends its next reply with `failure` set and ends.
#pragma once

#include <cstdint>

#include "client/kvctl/process/channel.h"
#include "client/kvctl/process/fixed_text.h"
#include "daemon/policy/policies.h"
#include "kvm/device.h"

namespace kvm::ctl {

struct WorkerConfig {
  FixedText<128> socket;       // a Unix socket path has at most 107 bytes
  FixedText<128> mesh_socket;  // empty: blocks of other nodes are not asked for
  FixedText<64> name;          // of the client and of its region
  FixedText<512> model_id, revision;
  DeviceUuid device{};  // of the pool; zeros: host memory
  std::uint64_t block_bytes = 0;
  std::uint32_t block_tokens = 0;
  std::uint32_t pool_blocks = 0;
  policy::PolicyKind policy = policy::PolicyKind::kLru;  // of the pool
  // Publishes are visible before a request counts as served
  bool in_order = false;
  bool publish_imported = true;
  double prefill_us_per_block = 0;  // that computing takes; 0: no time
  std::uint32_t wait_computing_ms = 0;
  std::uint32_t join_ms = 0;
  // By which kvmd-mesh decides whether a join is worth it; 0: it always is
  double prefill_tokens_per_s = 0;
  bool offload = true;  // kvmd's host cache gets the blocks if it asks for them
};

struct WorkerReady {
  FixedText<512> failure;
};

struct MeetPeers {};
struct PeersMet {
  FixedText<512> failure;
  FixedText<512> unmapped;  // a peer's region that this worker can't import from, and why
};

struct ServeRequest {
  std::uint64_t hash_id_count = 0;
  bool finish = false;
};
// Hash ids follow in messages of this many, the last one of what is left: a request may have more
// than one message takes.
inline constexpr std::size_t kIdsPerMessage = 16'384;
static_assert(kIdsPerMessage * sizeof(std::uint64_t) <= Channel::kMaxMessageBytes);

struct ServeReply {
  FixedText<512> failure;
  std::uint64_t blocks_local = 0, blocks_imported = 0, blocks_joined = 0;
  std::uint64_t bytes_imported = 0;
  std::uint64_t mismatched_blocks = 0;
  std::uint64_t failed_import_blocks = 0;
  std::uint64_t keys_ns = 0, find_ns = 0, join_ns = 0, import_ns = 0, publish_ns = 0, flush_ns = 0;
  bool looked_up = false, joined = false, imported = false, published = false, flush_failed = false;
};

struct WorkerSummary {
  FixedText<512> failure;
  std::uint64_t evictions = 0;
  std::uint64_t publishes_refused = 0, publishes_deferred = 0;
  std::uint64_t blocks_from_host_cache = 0, blocks_offloaded = 0, offloads_dropped = 0, offloads_refused = 0;
  std::uint64_t computing_waits = 0, computing_waits_in_vain = 0;
};

}  // namespace kvm::ctl
