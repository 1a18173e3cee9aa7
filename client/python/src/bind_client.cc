// Client: a process's connection to the node's marketplace.
#include <cstdlib>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "client/python/src/bindings.h"
#include "client/python/src/deadline.h"
#include "client/python/src/import_ticket.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

struct PyClient {
  Owned<Client> client;
};

std::string SocketPath(const std::optional<std::string>& given) {
  if (given) return *given;
  const char* environment = std::getenv("KVMD_SOCKET");
  return environment != nullptr && *environment != '\0' ? environment : ClientOptions{}.socket_path;
}

void Connect(PyClient* self, const std::optional<std::string>& socket_path, std::string name, double timeout_s, bool start_offline,
             bool map_payload, double reconnect_min_s, double reconnect_max_s, std::size_t max_queued_publishes) {
  ClientOptions options;
  options.socket_path = SocketPath(socket_path);
  options.name = std::move(name);
  options.timeout = ToMilliseconds(timeout_s, "timeout_s");
  options.start_offline = start_offline;
  options.map_payload = map_payload;
  options.reconnect_min = ToMilliseconds(reconnect_min_s, "reconnect_min_s");
  options.reconnect_max = ToMilliseconds(reconnect_max_s, "reconnect_max_s");
  options.max_queued_publishes = max_queued_publishes;
  new (self) PyClient{{Unwrap(WithoutGil([&] { return Client::Connect(options); })), "client"}};
}

// As large as the geometry needs; only called for geometries that AllocateRegion has accepted.
std::vector<std::uint64_t> SegmentsOf(const Geometry& geometry) {
  std::vector<std::uint64_t> sizes;
  for (const GeometryPart& part : geometry.parts) {
    if (sizes.size() <= part.segment) sizes.resize(part.segment + 1);
    const std::uint64_t end =
        part.offset + (part.count - 1) * part.repeat_stride + (geometry.block_count - 1) * part.block_stride + part.chunk_bytes;
    sizes[part.segment] = std::max(sizes[part.segment], end);
  }
  return sizes;
}

PyRegion AllocateRegion(const PyClient& self, const Model& model, const Geometry& geometry, std::string name, const Shard& shard,
                        std::vector<std::uint64_t> segment_bytes, double timeout_s) {
  const std::shared_ptr<Client> client = self.client.Get();
  const Deadline deadline = ToDeadline(timeout_s);
  RegionOptions options;
  options.name = std::move(name);
  options.shard = shard;
  options.geometry = geometry;
  options.segment_bytes = segment_bytes;
  std::shared_ptr<Region> region = Unwrap(WithoutGil([&] { return client->AllocateRegion(model, options, deadline); }));
  if (segment_bytes.empty()) segment_bytes = SegmentsOf(geometry);
  return {{std::move(region), "region"}, std::move(segment_bytes)};
}

std::vector<Match> FindShards(const PyClient& self, const std::vector<const BlockKeys*>& keys_by_shard, bool include_own) {
  const std::shared_ptr<Client> client = self.client.Get();
  std::vector<std::span<const BlockKey>> shards;
  for (const BlockKeys* keys : keys_by_shard) {
    if (keys->size() != keys_by_shard.front()->size())
      Raise(MakeError(Errc::kInvalidArgument, "the shards have different numbers of keys"));
    shards.emplace_back(*keys);
  }
  return WithoutGil([&] { return client->FindShards(shards, {.include_own = include_own}); });
}

void BindStats(nb::module_& module) {
  nb::enum_<ConnectionState>(module, "ConnectionState")
      .value("CONNECTING", ConnectionState::kConnecting)
      .value("CONNECTED", ConnectionState::kConnected)
      .value("CLOSED", ConnectionState::kClosed);
  nb::class_<ClientStats>(module, "ClientStats", "Cumulative since the client connected, except mapped_regions.")
      .def_ro("finds", &ClientStats::finds)
      .def_ro("keys_looked_up", &ClientStats::keys_looked_up)
      .def_ro("keys_matched", &ClientStats::keys_matched)
      .def_ro("imports", &ClientStats::imports)
      .def_ro("blocks_imported", &ClientStats::blocks_imported, "Validated ones only.")
      .def_ro("blocks_failed", &ClientStats::blocks_failed)
      .def_ro("bytes_imported", &ClientStats::bytes_imported, "Of validated blocks.")
      .def_ro("blocks_published", &ClientStats::blocks_published)
      .def_ro("publishes_deferred", &ClientStats::publishes_deferred)
      .def_ro("publishes_refused", &ClientStats::publishes_refused, "By kvmd: full, enough replicas, stale.")
      .def_ro("reconnects", &ClientStats::reconnects)
      .def_ro("mapped_regions", &ClientStats::mapped_regions, "Peers mapped now.");
}

}  // namespace

void BindClient(nb::module_& module) {
  BindStats(module);
  const ClientOptions defaults;
  nb::class_<PyClient>(
      module, "Client",
      "A process's connection to the node's marketplace. Thread-safe. Lookups and imports read shared memory and need no running\n"
      "kvmd; registering and publishing go over a socket, by a background thread that reconnects by itself.\n"
      "After fork() a child makes its own: using its parent's raises UnsupportedError.")
      .def("__init__", &Connect, "socket_path"_a = nb::none(), nb::kw_only(), "name"_a = defaults.name, "timeout_s"_a = 2.0,
           "start_offline"_a = defaults.start_offline, "map_payload"_a = defaults.map_payload, "reconnect_min_s"_a = 0.02,
           "reconnect_max_s"_a = 1.0, "max_queued_publishes"_a = defaults.max_queued_publishes,
           "socket_path: default $KVMD_SOCKET, else /run/kvmd/kvmd.sock. name: shown by kvctl, at most 63 bytes. timeout_s: how long to "
           "wait\n"
           "for kvmd. start_offline: succeed also while kvmd is not there. map_payload: False for a process that only looks up.\n"
           "max_queued_publishes: blocks that may wait for kvmd's answer; beyond, they are deferred.\n"
           "UnavailableError: nothing listens. DeadlineExceededError. PermissionDeniedError, VersionMismatchError,\n"
           "ResourceExhaustedError: kvmd refused; the message says why.")
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
            Check(WithoutGil([&] { return client->WaitConnected(deadline); }));
          },
          "timeout_s"_a = 2.0, "DeadlineExceededError.")
      .def(
          "declare_model",
          [](const PyClient& self, const ModelSpec& spec, double timeout_s) {
            const std::shared_ptr<Client> client = self.client.Get();
            const Deadline deadline = ToDeadline(timeout_s);
            const ModelSpec copy = spec;
            return Unwrap(WithoutGil([&] { return client->DeclareModel(copy, deadline); }));
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
          "model"_a, "Models that others have declared under the same model_id and that differ from `model`: the fields are named.")
      .def(
          "allocate_region", &AllocateRegion, "model"_a, "geometry"_a, nb::kw_only(), "name"_a, "shard"_a = Shard{},
          "segment_bytes"_a = std::vector<std::uint64_t>{}, "timeout_s"_a = 2.0,
          nb::sig("def allocate_region(self, model: Model, geometry: Geometry, *, name: str, shard: Shard = ..., segment_bytes: "
                  "collections.abc.Sequence[int] = ..., timeout_s: float = 2.0) -> Region"),
          "Allocates host memory that peers can map, zeroed, and registers it. segment_bytes: size of each segment that the geometry\n"
          "refers to; empty: as large as it needs. name: unique among this user's live regions; at most 63 bytes.\n"
          "BadGeometryError, the part named; AlreadyExistsError; ResourceExhaustedError; DeadlineExceededError. While offline it succeeds\n"
          "and is registered on connecting.")
      .def(
          "find",
          [](const PyClient& self, const BlockKeys& keys, bool include_own) {
            const std::shared_ptr<Client> client = self.client.Get();
            return WithoutGil([&] { return client->Find(keys, {.include_own = include_own}); });
          },
          "keys"_a, nb::kw_only(), "include_own"_a = true,
          "Longest common prefix of `keys`, consecutive keys of one chain, with what is published. Reads shared memory: microseconds, no\n"
          "system call. include_own: also look into this client's own regions.")
      .def("find_shards", &FindShards, "keys_by_shard"_a, nb::kw_only(), "include_own"_a = true,
           "The same for a model cut into shards; every match has the length of the shortest.")
      .def(
          "import_blocks",
          [](const PyClient& self, const Match& match, const PyRegion& destination, const std::vector<std::uint32_t>& blocks,
             std::optional<double> timeout_s) {
            const std::shared_ptr<Client> client = self.client.Get();
            const std::shared_ptr<Region> region = destination.region.Get();
            const ImportOptions options{.deadline = ToDeadline(timeout_s)};
            return PyImportTicket(Unwrap(WithoutGil([&] { return client->Import(match, *region, blocks, options); })));
          },
          "match"_a, "destination"_a, "blocks"_a, "timeout_s"_a = nb::none(),
          "Copies the blocks of `match` to `blocks` (as many, all different) of `destination`, a region of this client, validated. They "
          "are\n"
          "withdrawn at the start and stay unreadable to others until published with the result's writes. Blocks not copied in time fail.\n"
          "InvalidArgumentError: lengths differ, a block out of range or named twice, block sizes differ; nothing was touched then.")
      .def("stats", [](const PyClient& self) { return self.client.Get()->Stats(); })
      .def(
          "close", [](PyClient& self) { self.client.Release(); }, "Ends the connection; every later call raises CancelledError.")
      .def_prop_ro("closed", [](const PyClient& self) { return self.client.closed(); })
      .def(
          "__enter__", [](nb::object self) { return self; }, nb::sig("def __enter__(self) -> Client"))
      .def(
          "__exit__", [](PyClient& self, const nb::args&) { self.client.Release(); }, "exception"_a,
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

}  // namespace kvm::python
