// Client: a process's connection to the node's marketplace.
#include <cstdlib>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"
#include "client/python/src/device_id.h"
#include "client/python/src/import_ticket.h"
#include "client/python/src/integers.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

std::string SocketPath(const std::optional<std::string>& given) {
  if (given) return *given;
  const char* environment = std::getenv("KVMD_SOCKET");
  return environment != nullptr && *environment != '\0' ? environment : ClientOptions{}.socket_path;
}

void Connect(PyClient* self, const std::optional<std::string>& socket_path, std::string name, double timeout_s, bool start_offline,
             bool map_payload, const std::vector<DeviceId>& devices, std::size_t max_mapped_regions, double reconnect_min_s,
             double reconnect_max_s, std::size_t max_queued_publishes, std::uint32_t verify_one_in) {
  ClientOptions options;
  options.socket_path = SocketPath(socket_path);
  options.name = std::move(name);
  options.timeout = ToMilliseconds(timeout_s, "timeout_s");
  options.start_offline = start_offline;
  options.map_payload = map_payload;
  for (const DeviceId& device : devices) options.devices.push_back(UuidOf(device));
  options.max_mapped_regions = max_mapped_regions;
  options.reconnect_min = ToMilliseconds(reconnect_min_s, "reconnect_min_s");
  options.reconnect_max = ToMilliseconds(reconnect_max_s, "reconnect_max_s");
  options.max_queued_publishes = max_queued_publishes;
  options.verify_one_in = verify_one_in;
  new (self) PyClient{{Unwrap(WaitWithoutGil([&] { return Client::Connect(options); })), "client"}};
}

RegionOptions OptionsOf(const Geometry& geometry, std::string name, const std::optional<DeviceId>& device, const Shard& shard,
                        bool checksums, bool outlives_owner, OffloadMode offload) {
  RegionOptions options;
  options.name = std::move(name);
  options.shard = shard;
  options.geometry = geometry;
  options.device = UuidOf(device);
  options.checksums = checksums;
  options.outlives_owner = outlives_owner;
  options.offload = offload;
  return options;
}

PyRegion AllocateRegion(const PyClient& self, const Model& model, const Geometry& geometry, std::string name,
                        const std::optional<DeviceId>& device, const Shard& shard, bool checksums, std::vector<std::uint64_t> segment_bytes,
                        bool outlives_owner, OffloadMode offload, double timeout_s) {
  const std::shared_ptr<Client> client = self.client.Get();
  const Deadline deadline = ToDeadline(timeout_s);
  RegionOptions options = OptionsOf(geometry, std::move(name), device, shard, checksums, outlives_owner, offload);
  options.segment_bytes = std::move(segment_bytes);
  return {{Unwrap(WaitWithoutGil([&] { return client->AllocateRegion(model, options, deadline); })), "region"}};
}

std::pair<PyRegion, std::vector<AdoptedBlock>> AdoptRegion(const PyClient& self, const Model& model, const Geometry& geometry,
                                                           std::string name, const std::optional<DeviceId>& device, const Shard& shard,
                                                           bool checksums, std::vector<std::uint64_t> segment_bytes, OffloadMode offload,
                                                           double timeout_s) {
  const std::shared_ptr<Client> client = self.client.Get();
  const Deadline deadline = ToDeadline(timeout_s);
  RegionOptions options = OptionsOf(geometry, std::move(name), device, shard, checksums, true, offload);
  options.segment_bytes = std::move(segment_bytes);
  AdoptedRegion adopted = Unwrap(WaitWithoutGil([&] { return client->AdoptRegion(model, options, deadline); }));
  return {PyRegion{{std::move(adopted.region), "region"}}, std::move(adopted.blocks)};
}

ReclaimedMemory ReclaimOrphans(const PyClient& self, const std::optional<DeviceId>& device, std::string name, double min_age_s,
                               double timeout_s) {
  const std::shared_ptr<Client> client = self.client.Get();
  const Deadline deadline = ToDeadline(timeout_s);
  ReclaimOptions what;
  if (device) what.device = UuidOf(device);
  what.name = std::move(name);
  what.min_age = std::chrono::ceil<std::chrono::seconds>(ToMilliseconds(min_age_s, "min_age_s"));
  return Unwrap(WaitWithoutGil([&] { return client->ReclaimOrphans(what, deadline); }));
}

PyRegion RegisterRegion(const PyClient& self, const Model& model, const Geometry& geometry,
                        const std::vector<std::pair<std::uintptr_t, std::uint64_t>>& segments, std::string name,
                        const std::optional<DeviceId>& device, const Shard& shard, bool checksums, nb::object keep_alive,
                        bool outlives_owner, OffloadMode offload, double timeout_s) {
  const std::shared_ptr<Client> client = self.client.Get();
  const Deadline deadline = ToDeadline(timeout_s);
  const RegionOptions options = OptionsOf(geometry, std::move(name), device, shard, checksums, outlives_owner, offload);
  std::vector<DeviceRange> ranges;
  ranges.reserve(segments.size());
  for (const auto& [address, size_bytes] : segments) ranges.push_back({reinterpret_cast<void*>(address), size_bytes});
  std::shared_ptr<Region> region = Unwrap(WaitWithoutGil([&] { return client->RegisterRegion(model, options, ranges, deadline); }));
  return {{KeepAlive(std::move(region), std::move(keep_alive)), "region"}};
}

// The arguments of a lookup; they keep the destination alive while it runs.
struct FindArguments {
  FindArguments(bool include_own, const PyRegion* destination, bool computing = false)
      : region(destination != nullptr ? destination->region.Get() : nullptr) {
    options.include_own = include_own;
    options.destination = region.get();
    options.computing = computing;
  }
  const std::shared_ptr<Region> region;
  FindOptions options;
};

Match Find(const PyClient& self, const BlockKeys& keys, bool include_own, const PyRegion* destination, bool computing) {
  const std::shared_ptr<Client> client = self.client.Get();
  const FindArguments arguments(include_own, destination, computing);
  return WithoutGil([&] { return client->Find(keys, arguments.options); });
}

Match FindWaiting(const PyClient& self, const BlockKeys& keys, double bound_s, std::size_t min_blocks, bool include_own,
                  const PyRegion* destination) {
  const std::shared_ptr<Client> client = self.client.Get();
  const FindArguments arguments(include_own, destination);
  const WaitOptions wait{ToMilliseconds(bound_s, "bound_s"), min_blocks};
  return WaitWithoutGil([&] { return client->FindWaiting(keys, wait, arguments.options); });
}

std::vector<Match> FindShards(const PyClient& self, const std::vector<const BlockKeys*>& keys_by_shard, bool include_own,
                              const PyRegion* destination) {
  const std::shared_ptr<Client> client = self.client.Get();
  const FindArguments arguments(include_own, destination);
  std::vector<std::span<const BlockKey>> shards;
  for (const BlockKeys* keys : keys_by_shard) {
    if (keys->size() != keys_by_shard.front()->size())
      Raise(MakeError(Errc::kInvalidArgument, "the shards have different numbers of keys"));
    shards.emplace_back(*keys);
  }
  return WithoutGil([&] { return client->FindShards(shards, arguments.options); });
}

// So many keys are looked up sooner than a thread that waits for the GIL wakes up.
constexpr std::size_t kMostWithGil = 8192;

std::size_t CountPublished(const PyClient& self, const std::vector<const BlockKeys*>& keys_by_shard, std::size_t first, std::size_t last,
                           bool include_own) {
  const std::shared_ptr<Client> client = self.client.Get();
  const FindArguments arguments(include_own, nullptr);
  std::vector<std::span<const BlockKey>> shards;
  shards.reserve(keys_by_shard.size());
  for (const BlockKeys* keys : keys_by_shard) {
    if (first > last || last > keys->size()) {
      Raise(MakeError(Errc::kInvalidArgument, "blocks [" + std::to_string(first) + ", " + std::to_string(last) + ") of a shard with " +
                                                  std::to_string(keys->size()) + " keys"));
    }
    shards.push_back(std::span(*keys).subspan(first, last - first));
  }
  if (shards.empty()) Raise(MakeError(Errc::kInvalidArgument, "no shard's keys"));
  const auto count = [&] { return client->CountShards(shards, arguments.options); };
  return shards.size() * (last - first) <= kMostWithGil ? count() : WithoutGil(count);
}

std::size_t CountHashed(const PyClient& self, const nb::list& hashes, PyShardKeys& shard, BlockKeys& keys, std::size_t first,
                        std::size_t last, bool include_own) {
  shard.ExtendHashed(keys, hashes, last);
  if (first > last || last > keys.size())
    Raise(MakeError(Errc::kInvalidArgument, std::to_string(keys.size()) + " of " + std::to_string(last) + " blocks have a hash"));
  const std::shared_ptr<Client> client = self.client.Get();
  FindOptions options;
  options.include_own = include_own;
  const auto count = [&] { return client->Count(std::span(keys).subspan(first, last - first), options); };
  return last - first <= kMostWithGil ? count() : WithoutGil(count);
}

PyImportTicket ImportBlocks(const PyClient& self, const Match& match, const PyRegion& destination, const BlockIds& blocks,
                            std::optional<double> timeout_s, bool verify, std::optional<std::uintptr_t> stream, unsigned max_sms,
                            bool wants_event) {
  const std::shared_ptr<Client> client = self.client.Get();
  std::shared_ptr<Region> region = destination.region.Get();
  ImportOptions options;
  options.deadline = ToDeadline(timeout_s);
  options.verify = verify;
  if (stream) options.stream = StreamHandle{*stream};
  options.max_sms = max_sms;
  options.wants_event = wants_event;
  ImportTicket ticket = Unwrap(WithoutGil([&] { return client->Import(match, *region, blocks.values, options); }));
  return {std::move(ticket), std::move(region)};
}

using ClientClass = nb::class_<PyClient>;

void BindRegions(ClientClass& client) {
  client
      .def("allocate_region", &AllocateRegion, "model"_a, "geometry"_a, nb::kw_only(), "name"_a, "device"_a = nb::none(),
           "shard"_a = Shard{}, "checksums"_a = false, "segment_bytes"_a = nb::tuple(), "outlives_owner"_a = true,
           "offload"_a = OffloadMode::kAuto, "timeout_s"_a = 2.0,
           nb::sig("def allocate_region(self, model: Model, geometry: Geometry, *, name: str, device: DeviceId | None = None, shard: Shard "
                   "= ..., checksums: bool = False, segment_bytes: collections.abc.Sequence[int] = (), outlives_owner: bool = True, "
                   "offload: OffloadMode = ..., timeout_s: float = 2.0) -> Region"),
           "Allocates zeroed memory that peers can map, and registers it. device: the GPU; None: host memory. name: unique among this\n"
           "user's live regions; at most 63 bytes. checksums: publish records a checksum of each block, for importers that use verify.\n"
           "segment_bytes: size in bytes of each segment that the geometry refers to; empty: as large as the geometry needs. The first\n"
           "call for a GPU creates its context (some 100 ms) and maps the known regions of peers for it. outlives_owner: if this\n"
           "process dies, kvmd keeps the memory for a while, for importers and for adopt_region. offload: which blocks are offered to\n"
           "kvmd's host cache. BadGeometryError, the part named; AlreadyExistsError; ResourceExhaustedError; DeadlineExceededError.\n"
           "UnsupportedError, NotFoundError: no such GPU, or no CUDA. While offline the call succeeds, and the region is registered\n"
           "after connecting.")
      .def("register_region", &RegisterRegion, "model"_a, "geometry"_a, "segments"_a, nb::kw_only(), "name"_a, "device"_a = nb::none(),
           "shard"_a = Shard{}, "checksums"_a = false, "keep_alive"_a.none() = nb::none(), "outlives_owner"_a = false,
           "offload"_a = OffloadMode::kAuto, "timeout_s"_a = 2.0,
           nb::sig("def register_region(self, model: Model, geometry: Geometry, segments: collections.abc.Sequence[tuple[int, int]], *, "
                   "name: str, device: DeviceId | None = None, shard: Shard = ..., checksums: bool = False, keep_alive: object = None, "
                   "outlives_owner: bool = False, offload: OffloadMode = ..., timeout_s: float = 2.0) -> Region"),
           "Registers GPU memory that this process has allocated, without a copy. `segments`: (address, size in bytes) of each segment\n"
           "that the geometry refers to, all of one GPU. device: that GPU, if it is to be checked. The memory must stay allocated until\n"
           "the region has been unregistered: the region keeps a reference to `keep_alive`, the object that owns the memory, until\n"
           "then. kvclient.torch.register_tensors does all of that for tensors. Memory of cudaMalloc becomes a cuda_ipc region, memory\n"
           "of kvclient.torch.mem_pool a cuda_vmm_fd region. outlives_owner, for the latter: if this process dies, kvmd keeps its GPU\n"
           "memory for a while; leave it off for an engine that allocates new memory when it is restarted. InvalidArgumentError: not\n"
           "device memory, or a segment leaves its allocation. UnsupportedError: this memory can't be exported (cudaMallocAsync,\n"
           "expandable segments, …); the message says what can. Other errors: those of allocate_region.")
      .def("adopt_region", &AdoptRegion, "model"_a, "geometry"_a, nb::kw_only(), "name"_a, "device"_a = nb::none(), "shard"_a = Shard{},
           "checksums"_a = false, "segment_bytes"_a = nb::tuple(), "offload"_a = OffloadMode::kAuto, "timeout_s"_a = 2.0,
           nb::sig("def adopt_region(self, model: Model, geometry: Geometry, *, name: str, device: DeviceId | None = None, shard: Shard "
                   "= ..., checksums: bool = False, segment_bytes: collections.abc.Sequence[int] = (), offload: OffloadMode = ..., "
                   "timeout_s: float "
                   "= 2.0) -> tuple[Region, list[AdoptedBlock]]"),
           "Takes over the region of a dead process of the same user: its memory, without a copy, and the list of its blocks that are\n"
           "still readable. The arguments describe the expected region, as they did for allocate_region. NotFoundError: there is no\n"
           "such region, or no longer. AlreadyExistsError: it has an owner. UnavailableError: its previous owner's process has not\n"
           "ended in time. ModelMismatchError, BadGeometryError: it differs from what is expected, the field named. UnsupportedError:\n"
           "it can't be adopted. ResourceExhaustedError. DeadlineExceededError.")
      .def("reclaim_orphans", &ReclaimOrphans, nb::kw_only(), "device"_a = nb::none(), "name"_a = "", "min_age_s"_a = 0.0,
           "timeout_s"_a = 2.0,
           nb::sig("def reclaim_orphans(self, *, device: DeviceId | None = None, name: str = '', min_age_s: float = 0.0, timeout_s: float "
                   "= 2.0) -> ReclaimedMemory"),
           "Frees regions that dead processes of this user have left (on one GPU, of one name, dead for at least min_age_s), and waits\n"
           "until importers have unmapped them. An engine with an allocator of its own calls it before it reads how much memory is\n"
           "free.");
}

void BindSharing(ClientClass& client) {
  client
      .def("join_cache", &JoinCache, "keys"_a, "destination"_a, nb::kw_only(), "timeout_s"_a = 0.5, "min_blocks"_a = 1,
           "prefill_tokens_per_s"_a = 0.0, "source_hint"_a = "", "mesh_socket"_a = "",
           "Asks this node's kvmd-mesh to bring the blocks of `keys` here that are on other nodes; find() finds them afterwards.\n"
           "keys: of a prefix, from its first block on. destination: a region whose blocks look as these do (model, shard, size);\n"
           "nothing is written to it. Returns after timeout_s at the latest, and never fails because of kvmd-mesh or the network:\n"
           "the prefix is shorter then, and the outcome's `reason` says why. min_blocks: nothing is fetched unless so many leading\n"
           "blocks can be expected to be here. prefill_tokens_per_s: how fast this process computes a prompt; blocks are fetched\n"
           "only where that is expected to take less time. 0: unknown, they always are. source_hint: the node to ask first.\n"
           "mesh_socket: empty for /run/kvmd-mesh/UID/mesh.sock.")
      .def("describe_blocks", &DescribeBlocks, "spec"_a, "keys"_a, "tokens"_a, nb::kw_only(), "timeout_s"_a = 0.5, "adapter"_a = "",
           "mesh_socket"_a = "",
           nb::sig("def describe_blocks(self, spec: ModelSpec, keys: BlockKeys, tokens: TokenIds, *, timeout_s: float = 0.5, adapter: "
                   "str = '', mesh_socket: str = '') -> DescribeOutcome"),
           "Tells this node's kvmd-mesh which tokens the blocks of `keys` have, for the routers to which it publishes events. keys: of\n"
           "model `spec` and its first shard, in any order. tokens: [len(keys) * spec.block_tokens], one block behind another.\n"
           "adapter: name of the LoRA adapter. Blocks whose content depends on more than that (cache salt, images) are not to be\n"
           "described. mesh_socket: empty for /run/kvmd-mesh/UID/mesh.sock. InvalidArgumentError: lengths do not agree.\n"
           "UnavailableError: no kvmd-mesh listens. DeadlineExceededError.")
      .def("find", &Find, "keys"_a, nb::kw_only(), "include_own"_a = true, "destination"_a.none() = nb::none(), "computing"_a = false,
           "Finds the longest run of leading `keys`, consecutive keys of one chain, that is published. It reads shared memory, which\n"
           "takes microseconds and no system call. include_own: also find blocks in this client's own regions. destination: the region\n"
           "of this client to which the blocks are to be copied. The sources nearest to it are chosen (same GPU, NVLink, PCIe, host),\n"
           "and a block that can't be reached from there ends the match (UNMAPPED). None: all known blocks are found. computing: look for\n"
           "marks of the missing keys, too (Match.being_computed).")
      .def("find_waiting", &FindWaiting, "keys"_a, "bound_s"_a, nb::kw_only(), "min_blocks"_a = 1, "include_own"_a = true,
           "destination"_a.none() = nb::none(),
           "find(), and while another client computes the first missing block, as its mark says, finds again: until it is there, the\n"
           "mark ends, or bound_s has passed. Returns what is found by then; never fails. min_blocks: wait only if that brings so many\n"
           "blocks more. A client whose marks were waited for in vain is not waited for again for 10 s.")
      .def("mark_computing", &MarkComputing, "missing"_a, "ttl_s"_a,
           "Says that this client is about to compute the blocks of `missing`: consecutive keys of one prompt, from the first missing\n"
           "one to the last. A key that another client has marked keeps that mark. kvmd ends the mark after ttl_s, or after its\n"
           "--max-mark-ttl-s. Never waits; without kvmd nothing is marked. See ComputingMark.")
      .def("find_shards", &FindShards, "keys_by_shard"_a, nb::kw_only(), "include_own"_a = true, "destination"_a.none() = nb::none(),
           "The same for a model that is divided into shards; every match has the length of the shortest.")
      .def("count_published", &CountPublished, "keys_by_shard"_a, "first"_a, "last"_a, nb::kw_only(), "include_own"_a = true,
           "How many blocks, from `first` on and before `last`, are published for every shard: the length of what find_shards() finds\n"
           "of keys[first:last], without the matches. Short lookups keep the interpreter lock. InvalidArgumentError: no shard, or one\n"
           "without `last` keys.")
      .def("count_hashed", &CountHashed, "hashes"_a, "shard"_a, "keys"_a, "first"_a, "last"_a, "include_own"_a = true,
           nb::sig("def count_hashed(self, hashes: list[bytes], shard: ShardKeys, keys: BlockKeys, first: int, last: int, "
                   "include_own: bool = True) -> int"),
           "Appends to `keys` the shard's keys of what hashes[len(keys):last] name (see BlockKeys.extend_hashes), and returns\n"
           "count_published([keys], first, last).\n"
           "InvalidArgumentError: fewer than `last` blocks have a hash, or one has fewer than 32 bytes.")
      .def("import_blocks", &ImportBlocks, "match"_a, "destination"_a, "blocks"_a, "timeout_s"_a = nb::none(), nb::kw_only(),
           "verify"_a = false, "stream"_a = nb::none(), "max_sms"_a = 0, "wants_event"_a = false,
           "Copies the blocks of `match` to `blocks` (as many, all different) of `destination`, a region of this client, and validates\n"
           "them. They are withdrawn at the start and stay unreadable to other processes until they are published with the result's\n"
           "writes. Blocks that are not copied in time fail. verify: compare the bytes with the checksums that their publishers\n"
           "recorded, if they did; this reads the bytes once more. For destinations on a GPU: `stream` is a cudaStream_t as an integer\n"
           "(torch.cuda.Stream.cuda_stream); the copy takes place in its order, after all work that is queued on it. None: a stream of\n"
           "libkvclient; then no queued work may use the destination blocks. max_sms: multiprocessors that the copy may occupy, 0: as\n"
           "many as it takes. wants_event: see ImportTicket.event. InvalidArgumentError: lengths differ, a block out of range or named\n"
           "twice, block sizes differ; no block is touched then.")
      .def("acquire_lease", &AcquireLease, "match"_a, "ttl_s"_a, "timeout_s"_a = 2.0,
           "Asks kvmd to keep, for `ttl_s` seconds from now, the leading blocks of `match` that are in kvmd's own memory. See Lease;\n"
           "its `reason` says why it does not cover all blocks. UnsupportedError: the first block is in memory of living workers only.\n"
           "StaleError: it has been rewritten, or kvmd was restarted since; find again. ResourceExhaustedError: a limit of kvmd, the\n"
           "option named. InvalidArgumentError: an empty match, or `ttl_s` is out of range. UnavailableError: not connected.\n"
           "DeadlineExceededError.");
}

void BindConnection(ClientClass& client) {
  const ClientOptions defaults;
  client
      .def("__init__", &Connect, "socket_path"_a = nb::none(), nb::kw_only(), "name"_a = defaults.name, "timeout_s"_a = 2.0,
           "start_offline"_a = defaults.start_offline, "map_payload"_a = defaults.map_payload, "devices"_a = nb::tuple(),
           "max_mapped_regions"_a = defaults.max_mapped_regions, "reconnect_min_s"_a = 0.02, "reconnect_max_s"_a = 1.0,
           "max_queued_publishes"_a = defaults.max_queued_publishes, "verify_one_in"_a = defaults.verify_one_in,
           "socket_path: default $KVMD_SOCKET, else /run/kvmd/kvmd.sock. name: shown by kvctl, at most 63 bytes. timeout_s: how long to\n"
           "wait for kvmd. start_offline: succeed also if kvmd is not running. map_payload: False for a process that only looks up keys.\n"
           "devices: GPUs that this process will import to: peers' memory is mapped for them as soon as it is announced. A GPU on which\n"
           "a region is made is added to them. max_mapped_regions: blocks of further regions are not found. max_queued_publishes: blocks\n"
           "that may wait for kvmd's answer; further ones are deferred. verify_one_in: compare one in so many imported blocks with their\n"
           "publisher's checksum, and record checksums of the same blocks of own regions; give all workers the same number. 0: none.\n"
           "UnavailableError: nothing listens. DeadlineExceededError.\n"
           "PermissionDeniedError, VersionMismatchError, ResourceExhaustedError: kvmd refused; the message says why. NotFoundError,\n"
           "UnsupportedError: there is no such GPU, or no CUDA.")
      .def_prop_ro("state",
                   [](const PyClient& self) { return self.client.closed() ? ConnectionState::kClosed : self.client.Get()->state(); })
      .def_prop_ro(
          "client_id", [](const PyClient& self) { return self.client.Get()->client_id(); }, "0 while not connected.")
      .def_prop_ro(
          "domain", [](const PyClient& self) { return self.client.Get()->domain(); }, "Follows from this process's credentials.")
      .def_prop_ro(
          "last_error",
          [](const PyClient& self) -> nb::object {
            const Error error = self.client.Get()->last_error();
            return error.message.empty() ? nb::none() : ToException(error);
          },
          nb::sig("def last_error(self) -> KvError | None"), "Why the last connection failed or ended.")
      .def(
          "wait_connected",
          [](const PyClient& self, double timeout_s) {
            const std::shared_ptr<Client> client = self.client.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            Check(WaitWithoutGil([&] { return client->WaitConnected(deadline); }));
          },
          "timeout_s"_a = 2.0, "DeadlineExceededError.");
}

void BindModels(ClientClass& client) {
  client
      .def(
          "declare_model",
          [](const PyClient& self, const ModelSpec& spec, double timeout_s) {
            const std::shared_ptr<Client> client = self.client.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            // Another thread may change `spec` while the GIL is released.
            const ModelSpec copy = spec;  // NOLINT(performance-unnecessary-copy-initialization)
            return Unwrap(WaitWithoutGil([&] { return client->DeclareModel(copy, deadline); }));
          },
          "spec"_a, "timeout_s"_a = 2.0,
          "Declares a model and maps the regions of peers that have blocks of it: after the return, find() finds every block that was\n"
          "published before the call. While offline it succeeds at once. InvalidArgumentError: a field is missing or too long, named.\n"
          "ResourceExhaustedError: model table full.")
      .def(
          "near_misses",
          [](const PyClient& self, const Model& model) {
            const std::shared_ptr<Client> client = self.client.Get();
            return WithoutGil([&] { return client->NearMisses(model); });
          },
          "model"_a,
          "Models of other clients that have the same model_id and differ in other fields, or differ in the model_id alone. They\n"
          "explain why no blocks are shared; the fields are named.")
      .def(
          "unmapped_regions",
          [](const PyClient& self) {
            const std::shared_ptr<Client> client = self.client.Get();
            return WithoutGil([&] { return client->UnmappedRegions(); });
          },
          "Regions of peers that could not be mapped, with the reasons; normally there are none.")
      .def("stats", [](const PyClient& self) { return self.client.Get()->Stats(); });
}

void BindClose(ClientClass& client) {
  client
      .def(
          "close", [](PyClient& self) { self.client.Close(); },
          "Ends the regions and the connection; every later call raises\n"
          "CancelledError.")
      .def_prop_ro("closed", [](const PyClient& self) { return self.client.closed(); })
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Client"))
      .def(
          "__exit__", [](PyClient& self, const nb::args&) { self.client.Close(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace

void BindClient(nb::module_& module) {
  ClientClass client(
      module, "Client",
      "A process's connection to the node's marketplace. Thread-safe. Lookups and imports read shared memory and need no running kvmd;\n"
      "regions are registered and blocks published over a socket, by a background thread that reconnects by itself. After fork(), a\n"
      "child makes a client of its own: calls of its parent's client raise UnsupportedError.");
  BindConnection(client);
  BindModels(client);
  BindClose(client);
  BindRegions(client);
  BindSharing(client);
}

}  // namespace kvm::python
