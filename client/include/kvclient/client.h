// Client: a process's connection to kvmd, and so to all processes of the node that share blocks.
//
// Lookups and imports read shared memory and mapped regions of peers; they need no running kvmd and
// never wait for one. Regions are registered and blocks published over a Unix socket, which a
// background thread serves. That thread reconnects by itself, with a jittered back-off, and then
// declares, registers and publishes everything again.
//
// Thread-safe: every method may be called from any thread. No method throws. Only calls that take a
// deadline wait.
//
// Signals: memory of peers can vanish while it is read, which raises SIGBUS. The first mapping of
// shared memory installs a handler that turns this into a failed block; any other SIGBUS goes to
// the previous handler. A handler that the program installs later should pass on signals that are
// not its own. Threads that find or import must not block SIGBUS. The library can't be unloaded.
//
// fork(): a child has no part in its parent's Client and makes one of its own. In the child, calls
// of the parent's Client fail (kUnsupported, or an empty answer) without touching its connection,
// memory or blocks, and destroying it, or its regions, leases and tickets, does nothing. This also
// holds if other threads were inside the library at the fork.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvclient/computing.h"
#include "kvclient/describe.h"
#include "kvclient/import.h"
#include "kvclient/join.h"
#include "kvclient/lease.h"
#include "kvclient/match.h"
#include "kvclient/region.h"
#include "kvclient/stats.h"
#include "kvclient/types.h"

namespace kvm {

// How a client connects, and its limits; the defaults suit an engine.
struct ClientOptions {
  std::string socket_path = "/run/kvmd/kvmd.sock";
  std::string name = "worker";  // shown by kvctl; at most 63 bytes
  // How long Connect waits for kvmd. Destructors of Client, Region and ImportTicket wait no longer
  // than this either.
  std::chrono::milliseconds timeout{2000};
  // Return a client even if kvmd is not there yet; it connects in the background.
  bool start_offline = false;
  // Map peers' payload as well as their generations. A process that only looks up does not need it.
  bool map_payload = true;
  // GPUs that this process will import to: peers' memory is mapped for them as soon as it is
  // announced. A GPU that AllocateRegion or RegisterRegion names joins them. At most kMaxDevices.
  std::vector<DeviceUuid> devices{};
  // Regions of peers that may be mapped at once; blocks of further ones are not found.
  std::size_t max_mapped_regions = 4096;
  // Reconnect back-off: first and longest pause.
  std::chrono::milliseconds reconnect_min{20};
  std::chrono::milliseconds reconnect_max{1000};
  // How many published blocks may wait for kvmd's answer; further ones are sent later, and counted
  // as deferred.
  std::size_t max_queued_publishes = std::size_t{1} << 20;
  // How many blocks may wait to be copied to kvmd's host cache; further ones are not copied, and
  // counted as dropped.
  std::size_t max_queued_offloads = std::size_t{1} << 16;
  // Compare one in so many imported blocks with the checksum that its publisher has recorded; 0:
  // none. Blocks with other bytes fail (ImportFailure::kCorrupt) and are counted
  // (ClientStats::blocks_corrupt). The option is for both sides: it also makes this client's
  // regions record checksums of the same blocks, which their keys choose, unless they record those
  // of all (RegionOptions::checksums). Give all workers the same number. It finds faults of memory
  // and links, and owners that write without BeginWrite; it does not find a publisher that lies,
  // since that makes the checksum itself.
  std::uint32_t verify_one_in = 0;
};

// kConnecting: kvmd is away, and the client tries again by itself. kClosed: after a fork, in the
// child.
enum class ConnectionState : std::uint8_t { kConnecting, kConnected, kClosed };

// A peer's region that this process can't copy from, and why. Find ignores such a region when it
// looks for blocks to import. kResourceExhausted with EMFILE ("out of descriptors (limit N)"): this
// process had no descriptors left for it; the client tries again, after pauses that double up to a
// minute.
struct UnmappedRegion {
  std::string name;
  DeviceUuid for_device{};  // the importing GPU; zeros: host memory
  Error reason;
};

// Selects regions without an owner; an empty member means any.
struct ReclaimOptions {
  std::optional<DeviceUuid> device{};  // zeros: host memory
  std::string name{};
  std::chrono::seconds min_age{0};
};

// What ReclaimOrphans has freed.
struct ReclaimedMemory {
  std::size_t regions = 0;
  std::uint64_t blocks = 0;  // published ones
  std::uint64_t bytes = 0;
  // How many of the regions importers have not unmapped in time; their memory is freed when they do
  std::size_t still_mapped = 0;
};

// A model of another client that differs from one of ours in few fields, which explains why no
// blocks are shared.
struct NearMiss {
  ModelSpec theirs;
  std::vector<ModelFieldDifference> differences;  // ours, theirs
};

// A connection to the node's kvmd, and all that this process shares through it. Thread-safe. It
// reconnects by itself; while kvmd is away, lookups and imports go on.
class Client {
 public:
  // kUnavailable: nothing listens (unless start_offline). kDeadlineExceeded: `timeout` passed.
  // kPermissionDenied, kVersionMismatch, kResourceExhausted: kvmd refused; the message says why.
  [[nodiscard]] static Result<std::shared_ptr<Client>> Connect(ClientOptions options);
  // Ends its regions (region.h) and the connection. If a region is registered memory of cudaMalloc,
  // which CUDA must not free while importers use it, waits up to `timeout` until they have unmapped
  // it. Other memory lives as long as a process has it mapped, so nothing waits for that.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  ConnectionState state() const noexcept;  // now; it may change at any time
  // Waits for a connection. kDeadlineExceeded.
  [[nodiscard]] Status WaitConnected(Deadline deadline);
  std::uint64_t client_id() const noexcept;  // 0 while not connected
  std::string domain() const;                // follows from this process's credentials
  // Why the last connection failed or ended; an empty message if none has.
  Error last_error() const;

  // Declares a model and maps the regions of peers that have blocks of it: after the return, Find
  // finds every block that was published before the call. While offline it succeeds at once and
  // takes effect on connecting.
  // kInvalidArgument: a field is missing or too long, named. kResourceExhausted: model table full.
  // kDeadlineExceeded: kvmd has not answered, or not all regions are mapped; the model stays
  // declared, and another call waits for the rest.
  [[nodiscard]] Result<Model> DeclareModel(const ModelSpec& spec, Deadline deadline);

  // Declared models with the same model_id that differ from `model`, and those that differ in the
  // model_id alone: the fields are named.
  std::vector<NearMiss> NearMisses(const Model& model) const;

  // Allocates memory that peers can map, and registers it. The memory is zeroed. Before that, kvmd
  // frees the memory of a dead process of this user whose region had the same name (importers have
  // half of the time until `deadline` to unmap it). If the device lacks memory, kvmd also frees
  // regions of other dead processes on that device. kBadGeometry, the part named; kInvalidArgument:
  // a bad name; kAlreadyExists: the name is taken; kResourceExhausted: region table full, or too
  // little memory left on the machine or in a control group of this process, the figures named;
  // kUnsupported, kSystem: how much is left can't be determined; kDeadlineExceeded. While offline
  // it succeeds and is registered on connecting.
  //
  // With options.device, memory of that GPU; kUnsupported, kNotFound: there is no such GPU, or no
  // CUDA. The first call for a GPU creates its context (some 100 ms) and maps the known peers for
  // it.
  [[nodiscard]] Result<std::shared_ptr<Region>> AllocateRegion(const Model& model, RegionOptions options, Deadline deadline);

  // Registers GPU memory that the caller, or an engine's allocator, got from cudaMalloc, without a
  // copy: `segments`, which options.geometry refers to, all of one GPU. They stay the caller's, and
  // must stay allocated until the region has been unregistered. options.device may be left out,
  // options.segment_bytes is not used. Memory of AllocateExportable (kvm/exportable_memory.h)
  // becomes a cuda_vmm_fd region, and may be freed while it is registered. Errors of the name,
  // the geometry and the region table are those of AllocateRegion; beside them
  // kInvalidArgument: not device memory, a segment leaves its allocation, or some are of
  // AllocateExportable and some are not. kUnsupported: this memory can't be exported
  // (cudaMallocAsync, expandable segments, …); the message says what can.
  [[nodiscard]] Result<std::shared_ptr<Region>> RegisterRegion(const Model& model, RegionOptions options,
                                                               std::span<const DeviceRange> segments, Deadline deadline);

  // Takes over the region of a dead process of the same user: its memory, without a copy, and the
  // list of its blocks that are still readable. Imports from the region go on meanwhile. `options`
  // describe the region as they did for AllocateRegion: name, shard, geometry, device, checksums,
  // segment_bytes. kNotFound: there is no such region, or no longer. kAlreadyExists: it has an
  // owner. kUnavailable: the process that had it has not ended by `deadline`. kModelMismatch,
  // kBadGeometry: it differs from `options`, the field named.
  // kUnsupported: it can't be adopted (made while kvmd was away, or kvmd can't watch its process).
  // kResourceExhausted. After an error other than kDeadlineExceeded, nothing has changed.
  [[nodiscard]] Result<AdoptedRegion> AdoptRegion(const Model& model, RegionOptions options, Deadline deadline);

  // Frees regions that dead processes of this user have left, and waits until importers have
  // unmapped them. AllocateRegion does so by itself when a device has no memory left; an engine
  // with an allocator of its own calls it before it asks how much is free. kUnavailable: not
  // connected. kDeadlineExceeded.
  [[nodiscard]] Result<ReclaimedMemory> ReclaimOrphans(const ReclaimOptions& what, Deadline deadline);

  // Finds the longest run of leading `keys` that is published, by reading shared memory. It takes
  // microseconds, makes no system call and holds no lock. `keys`: consecutive keys of one chain.
  Match Find(std::span<const BlockKey> keys, const FindOptions& options = {}) const noexcept;
  // The same for a model that is divided into shards: `keys_by_shard[s]` are the keys of shard s;
  // all have the same length. All returned matches have the length of the shortest, since a prefix
  // that lacks one shard is useless.
  std::vector<Match> FindShards(std::span<const std::span<const BlockKey>> keys_by_shard, const FindOptions& options = {}) const;

  // How many leading `keys` Find would find, in less time: nothing is written for each key. It
  // counts as a lookup, and ignores FindOptions::computing. For schedulers, which ask how far a
  // prefix reaches long before a worker imports it. 0 where Find finds nothing, for whatever
  // reason.
  std::size_t Count(std::span<const BlockKey> keys, const FindOptions& options = {}) const noexcept;
  // The same for a model that is divided into shards (FindShards): the shortest shard's. 0 without
  // a shard.
  std::size_t CountShards(std::span<const std::span<const BlockKey>> keys_by_shard, const FindOptions& options = {}) const noexcept;

  // Find, with FindOptions::computing; and while another client computes the first missing block,
  // as its mark says, finds again until it is there, the mark ends, or wait.bound has passed. What
  // is found by then is returned: an engine computes the rest. Each lookup counts as one. Not for
  // threads that must not wait: those call Find and decide themselves.
  Match FindWaiting(std::span<const BlockKey> keys, const WaitOptions& wait, FindOptions options = {}) const noexcept;

  // Says that this client is about to compute the blocks of `missing` (computing.h): consecutive
  // keys of one prompt, from the first missing one to the last. A key that another client has
  // marked keeps that mark; look the keys up again once ComputingMark::Answered to see whose it is.
  // `ttl`: kvmd ends the mark then, or after its --max-mark-ttl-s. Never waits and never fails:
  // without kvmd nothing is marked.
  ComputingMark MarkComputing(std::span<const BlockKey> missing, std::chrono::milliseconds ttl);

  // Copies the blocks of `match` to `blocks` (as many, all different) of `destination`, a region of
  // this client. See import.h. kInvalidArgument: lengths differ, a block out of range or named
  // twice, sizes of blocks differ. kCancelled: the region has been unregistered. After an error, no
  // block has been touched.
  [[nodiscard]] Result<ImportTicket> Import(const Match& match, Region& destination, std::span<const std::uint32_t> blocks,
                                            const ImportOptions& options = {});

  // Asks this node's kvmd-mesh to bring the blocks of `keys` here that are on other nodes (join.h);
  // Find finds them afterwards. `keys`: a prefix from its first block on, for blocks as
  // `destination` has them (model, shard, size of a block); nothing is written to `destination`.
  // Waits until options.deadline at most. Never an error: without kvmd-mesh, or if no other node
  // has the blocks, fewer are here, and the outcome says why.
  JoinOutcome JoinCache(const Region& destination, std::span<const BlockKey> keys, const JoinOptions& options = {}) const;

  // Tells this node's kvmd-mesh which tokens the blocks of `keys` have (describe.h), for routers.
  // `keys`: of model `spec` and of its first shard (all ranks and the group 0), in any order.
  // `tokens`: [keys, spec.block_tokens], one block behind another. Blocks whose content depends on
  // more than tokens and adapter (cache salt, images) are not to be described. Waits until
  // options.deadline at most, and needs no kvmd. kInvalidArgument: lengths do not agree, or are out
  // of range. kUnavailable: no kvmd-mesh listens. kDeadlineExceeded. kProtocol: its answer is not
  // valid; one of an earlier version ends the connection, which is kUnavailable.
  [[nodiscard]] Result<DescribeOutcome> DescribeBlocks(const ModelSpec& spec, std::span<const BlockKey> keys,
                                                       std::span<const std::uint32_t> tokens, const DescribeOptions& options = {}) const;

  // Asks kvmd to keep, for `ttl` from now, the leading blocks of `match` that are in kvmd's own
  // memory (lease.h): at most kvmd's --max-lease-ttl-s, and renewable. Waits for kvmd's answer,
  // once for each 8192 blocks. The lease may cover fewer blocks than the match has; its reason()
  // says why. An error if it would cover none: kUnsupported: the first block is in memory of living
  // workers only. kStale: it has been rewritten or evicted, or kvmd was restarted since and its
  // owner has not reconnected yet: find again. kResourceExhausted: a limit
  // (--max-leases-per-client, --max-leases-per-user …), the option named.
  // kInvalidArgument: an empty match, or a `ttl` out of range. kUnavailable: not connected.
  // kDeadlineExceeded: there is no lease; if a late answer brings one, it is released.
  [[nodiscard]] Result<Lease> AcquireLease(const Match& match, std::chrono::milliseconds ttl, Deadline deadline);

  ClientStats Stats() const noexcept;  // zeros in a forked child
  // Regions of peers that could not be mapped, with the reasons; normally there are none.
  std::vector<UnmappedRegion> UnmappedRegions() const;

  static constexpr std::size_t kMaxDevices = 16;

  struct Impl;  // libkvclient's own
  explicit Client(std::shared_ptr<Impl> impl);
  Impl& impl() const noexcept { return *impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvm
