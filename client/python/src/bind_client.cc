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
             double reconnect_max_s, std::size_t max_queued_publishes) {
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
  for (const auto& [address, size_bytes] : segments) ranges.push_back({reinterpret_cast<void*>(address), size_bytes});
  std::shared_ptr<Region> region = Unwrap(WaitWithoutGil([&] { return client->RegisterRegion(model, options, ranges, deadline); }));
  return {{KeepAlive(std::move(region), std::move(keep_alive)), "region"}};
}

// Keeps the destination while the lookup runs.
struct FindArguments {
  FindArguments(bool include_own, const PyRegion* destination) : region(destination != nullptr ? destination->region.Get() : nullptr) {
    options.include_own = include_own;
    options.destination = region.get();
  }
  const std::shared_ptr<Region> region;
  FindOptions options;
};

Match Find(const PyClient& self, const BlockKeys& keys, bool include_own, const PyRegion* destination) {
  const std::shared_ptr<Client> client = self.client.Get();
  const FindArguments arguments(include_own, destination);
  return WithoutGil([&] { return client->Find(keys, arguments.options); });
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
           "Allocates memory that peers can map, zeroed, and registers it. device: the GPU; None: host memory. name: unique among this\n"
           "user's live regions; at most 63 bytes. checksums: publish records one of each block, for importers that ask for verify.\n"
           "segment_bytes: size of each segment that the geometry refers to; empty: as large as it needs. The first call for a GPU makes\n"
           "its context (some 100 ms) and maps for it what is known already. outlives_owner: should this process die, kvmd keeps the\n"
           "memory for a while, for importers and for adopt_region. offload: which blocks are offered to kvmd's host cache.\n"
           "BadGeometryError, the part named; AlreadyExistsError; ResourceExhaustedError; DeadlineExceededError. UnsupportedError,\n"
           "NotFoundError: no such GPU, or no CUDA. While offline it succeeds and is registered on connecting.")
      .def("register_region", &RegisterRegion, "model"_a, "geometry"_a, "segments"_a, nb::kw_only(), "name"_a, "device"_a = nb::none(),
           "shard"_a = Shard{}, "checksums"_a = false, "keep_alive"_a.none() = nb::none(), "outlives_owner"_a = false,
           "offload"_a = OffloadMode::kAuto, "timeout_s"_a = 2.0,
           nb::sig("def register_region(self, model: Model, geometry: Geometry, segments: collections.abc.Sequence[tuple[int, int]], *, "
                   "name: str, device: DeviceId | None = None, shard: Shard = ..., checksums: bool = False, keep_alive: object = None, "
                   "outlives_owner: bool = False, offload: OffloadMode = ..., timeout_s: float = 2.0) -> Region"),
           "Registers GPU memory that this process has already, as it is: `segments`, (address, size in bytes) of each that the geometry\n"
           "refers to, all of one GPU; device: which, where it shall be checked. The memory must stay allocated until the region has been\n"
           "unregistered: `keep_alive`, whatever owns it, is held until then. kvclient.torch.register_tensors does all of that for "
           "tensors.\n"
           "Memory of cudaMalloc becomes a cuda_ipc region, memory of kvclient.torch.mem_pool a cuda_vmm_fd region. outlives_owner, for\n"
           "the latter: should this process die, its GPU memory stays for a while; an engine that would rather allocate anew when it is\n"
           "started again leaves that off.\n"
           "InvalidArgumentError: not device memory, or a segment leaves its allocation. UnsupportedError: this memory can't be exported\n"
           "(cudaMallocAsync, expandable segments, …); the message says what can. Otherwise as allocate_region.")
      .def("adopt_region", &AdoptRegion, "model"_a, "geometry"_a, nb::kw_only(), "name"_a, "device"_a = nb::none(), "shard"_a = Shard{},
           "checksums"_a = false, "segment_bytes"_a = nb::tuple(), "offload"_a = OffloadMode::kAuto, "timeout_s"_a = 2.0,
           nb::sig("def adopt_region(self, model: Model, geometry: Geometry, *, name: str, device: DeviceId | None = None, shard: Shard "
                   "= ..., checksums: bool = False, segment_bytes: collections.abc.Sequence[int] = (), offload: OffloadMode = ..., "
                   "timeout_s: float "
                   "= 2.0) -> tuple[Region, list[AdoptedBlock]]"),
           "Gives this process the region that a dead process of the same user has left, its memory as it is, and the list of its blocks\n"
           "that are still good. The arguments say what is expected, as allocate_region had them.\n"
           "NotFoundError: there is none (any more). AlreadyExistsError: it has an owner. UnavailableError: the process that had it has\n"
           "not ended in time. ModelMismatchError, BadGeometryError: it is another than expected, the field named. UnsupportedError: it\n"
           "can't be adopted. ResourceExhaustedError. DeadlineExceededError.")
      .def("reclaim_orphans", &ReclaimOrphans, nb::kw_only(), "device"_a = nb::none(), "name"_a = "", "min_age_s"_a = 0.0,
           "timeout_s"_a = 2.0,
           nb::sig("def reclaim_orphans(self, *, device: DeviceId | None = None, name: str = '', min_age_s: float = 0.0, timeout_s: float "
                   "= 2.0) -> ReclaimedMemory"),
           "Gives up regions that dead processes of this user have left (of one GPU, of one name, dead for so long), and waits until\n"
           "importers have unmapped them. For an engine with an allocator of its own, before it looks how much memory is free.");
}

void BindSharing(ClientClass& client) {
  client
      .def("find", &Find, "keys"_a, nb::kw_only(), "include_own"_a = true, "destination"_a.none() = nb::none(),
           "Longest common prefix of `keys`, consecutive keys of one chain, with what is published. Reads shared memory: microseconds, no\n"
           "system call. include_own: also look into this client's own regions. destination: the region of this client that the blocks\n"
           "are wanted in: the nearest sources are chosen (same GPU, NVLink, PCIe, host), and blocks that can't be reached from there end\n"
           "the match (UNMAPPED). None: any block that is known counts.")
      .def("find_shards", &FindShards, "keys_by_shard"_a, nb::kw_only(), "include_own"_a = true, "destination"_a.none() = nb::none(),
           "The same for a model cut into shards; every match has the length of the shortest.")
      .def(
          "import_blocks", &ImportBlocks, "match"_a, "destination"_a, "blocks"_a, "timeout_s"_a = nb::none(), nb::kw_only(),
          "verify"_a = false, "stream"_a = nb::none(), "max_sms"_a = 0, "wants_event"_a = false,
          "Copies the blocks of `match` to `blocks` (as many, all different) of `destination`, a region of this client, validated. They "
          "are\n"
          "withdrawn at the start and stay unreadable to others until published with the result's writes. Blocks not copied in time fail.\n"
          "verify: compare the bytes with the checksums that their publishers recorded, where they did; costs one more reading of them.\n"
          "For destinations on a GPU: `stream`, a cudaStream_t as an integer (torch.cuda.Stream.cuda_stream): copy in its order, after\n"
          "what is queued on it; None: a stream of libkvclient's, so that the destination blocks must be free of work already. max_sms:\n"
          "multiprocessors that the copy may occupy, 0: as many as it takes. wants_event: see ImportTicket.event.\n"
          "InvalidArgumentError: lengths differ, a block out of range or named twice, block sizes differ; nothing was touched then.")
      .def("acquire_lease", &AcquireLease, "match"_a, "ttl_s"_a, "timeout_s"_a = 2.0,
           "Asks kvmd not to give up the leading blocks of `match` that it keeps itself, for `ttl_s` seconds from now: see Lease, whose\n"
           "reason says why not all of them are held. UnsupportedError: the first one is in memory of living workers only. StaleError: it\n"
           "has been rewritten, or kvmd was restarted since; find again. ResourceExhaustedError: a limit of kvmd's, the option named.\n"
           "InvalidArgumentError: an empty match, or no such time. UnavailableError: not connected. DeadlineExceededError.");
}

}  // namespace

void BindClient(nb::module_& module) {
  const ClientOptions defaults;
  ClientClass client(
      module, "Client",
      "A process's connection to the node's marketplace. Thread-safe. Lookups and imports read shared memory and need no running\n"
      "kvmd; registering and publishing go over a socket, by a background thread that reconnects by itself.\n"
      "After fork() a child makes its own: using its parent's raises UnsupportedError.");
  client
      .def(
          "__init__", &Connect, "socket_path"_a = nb::none(), nb::kw_only(), "name"_a = defaults.name, "timeout_s"_a = 2.0,
          "start_offline"_a = defaults.start_offline, "map_payload"_a = defaults.map_payload, "devices"_a = nb::tuple(),
          "max_mapped_regions"_a = defaults.max_mapped_regions, "reconnect_min_s"_a = 0.02, "reconnect_max_s"_a = 1.0,
          "max_queued_publishes"_a = defaults.max_queued_publishes,
          "socket_path: default $KVMD_SOCKET, else /run/kvmd/kvmd.sock. name: shown by kvctl, at most 63 bytes. timeout_s: how long to "
          "wait\n"
          "for kvmd. start_offline: succeed also while kvmd is not there. map_payload: False for a process that only looks up.\n"
          "devices: GPUs that this process will import to: peers' memory is mapped for them as soon as it is announced; one that a region\n"
          "is made on joins them. max_mapped_regions: what comes beyond is not found.\n"
          "max_queued_publishes: blocks that may wait for kvmd's answer; beyond, they are deferred.\n"
          "UnavailableError: nothing listens. DeadlineExceededError. PermissionDeniedError, VersionMismatchError,\n"
          "ResourceExhaustedError: kvmd refused; the message says why. NotFoundError, UnsupportedError: a GPU isn't there.")
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
          "timeout_s"_a = 2.0, "DeadlineExceededError.")
      .def(
          "declare_model",
          [](const PyClient& self, const ModelSpec& spec, double timeout_s) {
            const std::shared_ptr<Client> client = self.client.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            const ModelSpec copy = spec;
            return Unwrap(WaitWithoutGil([&] { return client->DeclareModel(copy, deadline); }));
          },
          "spec"_a, "timeout_s"_a = 2.0,
          "Declares a model and maps the regions of peers that serve it: on return everything published before is found. While offline\n"
          "it succeeds at once. InvalidArgumentError: a field is missing or too long, named. ResourceExhaustedError: model table full.")
      .def(
          "near_misses",
          [](const PyClient& self, const Model& model) {
            const std::shared_ptr<Client> client = self.client.Get();
            return WithoutGil([&] { return client->NearMisses(model); });
          },
          "model"_a,
          "Models that others have declared under the same model_id, or that differ in the model_id alone: why nothing is shared with\n"
          "them, the fields named.")
      .def(
          "unmapped_regions",
          [](const PyClient& self) {
            const std::shared_ptr<Client> client = self.client.Get();
            return WithoutGil([&] { return client->UnmappedRegions(); });
          },
          "Regions of peers that could not be mapped, with the reasons; none is the healthy state.")
      .def("stats", [](const PyClient& self) { return self.client.Get()->Stats(); })
      .def(
          "close", [](PyClient& self) { self.client.Close(); }, "Ends the connection; every later call raises CancelledError.")
      .def_prop_ro("closed", [](const PyClient& self) { return self.client.closed(); })
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Client"))
      .def(
          "__exit__", [](PyClient& self, const nb::args&) { self.client.Close(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
  BindRegions(client);
  BindSharing(client);
}

}  // namespace kvm::python
