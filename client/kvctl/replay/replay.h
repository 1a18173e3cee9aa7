// kvctl replay: serving a trace with separate worker processes that share blocks through kvmd.
//
// The coordinator (the kvctl that was called) sends requests to workers (kvctl processes that it
// starts). One request is in flight per worker, or only one in all with in_order; no worker runs
// far ahead of the others. A paced replay sends a request at the time of its timestamp, or later,
// as soon as its worker is free. Every worker recycles a pool of its own; see replay_worker.h for
// what it does with a request. One worker hits what `kvctl simulate` says for the same policy and
// capacity.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/samples.h"
#include "client/kvctl/workload/pool_memory.h"
#include "client/kvctl/workload/request.h"
#include "client/kvctl/workload/request_source.h"
#include "daemon/policy/policies.h"

namespace kvm::ctl {

enum class Routing { kRoundRobin, kSticky, kRandom };

// A node of a replay over several.
struct ReplayNode {
  std::string socket;       // of its kvmd
  std::string mesh_socket;  // of its kvmd-mesh; empty: none is asked
};

struct ReplayOptions : RequestSource {  // its seed is also that of random routing
  std::uint32_t workers = 4;
  std::uint32_t pool_blocks = 2000;                      // of each worker
  policy::PolicyKind policy = policy::PolicyKind::kLru;  // by which each pool is recycled
  std::uint64_t block_bytes = 4096;                      // a multiple of 8
  Routing routing = Routing::kRoundRobin;
  BackendChoice backend = BackendChoice::kAuto;
  std::string devices;  // GPUs that workers take in turn; empty: all
  bool in_order = false;
  bool paced = false;  // each request is sent when its timestamp says
  TimestampUnit timestamp_unit = TimestampUnit::kAuto;
  double speed = 1;  // of a paced replay: this many times as fast
  bool publish_imported = true;
  double prefill_us_per_token = 33;
  bool prefill_takes_time = false;  // a worker sleeps for so long before it publishes
  // Workers mark what they compute, and wait so long for what others do; 0: neither
  std::uint32_t wait_computing_ms = 0;
  bool private_kvmd = false;
  std::string kvmd_program;
  std::uint64_t host_cache_bytes = 0;  // of the private kvmd
  // By which that is recycled
  policy::PolicyKind host_cache_policy = policy::PolicyKind::kHitDensity;
  // empty: a model of this run alone
  std::string model_id;
  // Worker i is one of node i modulo their number; empty: all are of the kvmd at --socket
  std::vector<ReplayNode> nodes;
  std::uint32_t join_ms = 500;  // how long a worker waits for blocks of other nodes
};

struct ReplayReport {
  std::uint64_t requests = 0;
  std::uint64_t blocks_total = 0;
  std::uint64_t blocks_local = 0;  // of the hit blocks, in the worker's own pool
  // Of the hit blocks, copied from a peer or the host cache and validated
  std::uint64_t blocks_imported = 0;
  std::uint64_t blocks_from_host_cache = 0;  // of the imported ones
  std::uint64_t blocks_joined = 0;           // of the imported ones, fetched by kvmd-mesh
  std::uint64_t tokens_total = 0, tokens_saved = 0;
  std::uint64_t bytes_imported = 0;
  std::uint64_t mismatched_blocks = 0;     // bytes that are not what the key says: must be 0
  std::uint64_t failed_imports = 0;        // imports with at least one block that failed validation
  std::uint64_t failed_import_blocks = 0;  // blocks that were computed instead
  std::uint64_t flush_failures = 0;
  std::uint64_t evictions = 0, publishes_refused = 0, publishes_deferred = 0;
  std::uint64_t blocks_offloaded = 0;  // copied to the host cache
  // Blocks that were reused first; blocks that had no room
  std::uint64_t offloads_dropped = 0, offloads_refused = 0;
  std::uint64_t computing_waits = 0, computing_waits_in_vain = 0;
  // By a pool of the same size that shares nothing
  std::uint64_t blocks_hit_alone = 0;
  // Of a paced replay: sent so long after it was due
  Samples late_ms;
  Samples keys_us, find_us, join_us, import_us, publish_us, flush_us;
  Samples ttft_ms, ttft_alone_ms;  // modelled
  double wall_s = 0;
  std::vector<std::string> unmapped;  // workers that can't import from a peer, and why

  std::uint64_t blocks_hit() const noexcept { return blocks_local + blocks_imported; }
  bool Healthy() const noexcept { return mismatched_blocks == 0 && flush_failures == 0; }
};

// Runs the replay against `socket`, or options.nodes if there are any; worker i's pool is in
// memory.DeviceOfWorker(i). kCancelled: interrupted. Other errors: a worker's report, or how it
// died.
[[nodiscard]] Result<ReplayReport> Replay(const ReplayOptions& options, const PoolMemory& memory, const std::string& socket,
                                          const std::vector<Request>& requests);

// Worker of each request. Sticky: by the first two full blocks, since the first one is often a
// system prompt that all conversations share.
std::vector<std::uint32_t> AssignWorkers(const std::vector<Request>& requests, Routing routing, std::uint32_t workers, std::uint64_t seed);

// How the names of this process's workers and their regions begin.
std::string ReplayRegionPrefix();

std::string_view RoutingName(Routing routing) noexcept;
void PrintReplay(const ReplayOptions& options, const PoolMemory& memory, ReplayReport& report, bool json);

// The whole command; returns the exit code.
int RunReplay(const CommonOptions& common, const ReplayOptions& options);

}  // namespace kvm::ctl
