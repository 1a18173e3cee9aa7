// The parts of the extension module; each binds the types of one public header.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>

#include "client/python/src/integers.h"
#include "client/python/src/owned.h"
#include "kvclient/kvclient.h"
#include "kvm/shard_keys.h"

NB_MAKE_OPAQUE(std::vector<kvm::BlockKey>)
NB_MAKE_OPAQUE(std::vector<kvm::BlockWrite>)
NB_MAKE_OPAQUE(std::vector<kvm::PublishRequest>)

namespace kvm::python {

using BlockKeys = std::vector<BlockKey>;
using BlockWrites = std::vector<BlockWrite>;
using PublishRequests = std::vector<PublishRequest>;

// A ShardKeys of Python.
class PyShardKeys {
 public:
  PyShardKeys(const ModelSpec& spec, const Shard& shard, const std::vector<ExtraKey>& extras);

  const BlockKey& root() const { return keys_.root(); }
  // Appends the keys of names[keys.size():].
  void Extend(BlockKeys& keys, const BlockKeys& names);
  // Appends the keys of what hashes[keys.size():last] name, the first 16 bytes of each. Raises
  // InvalidArgumentError: one has fewer than 32 bytes.
  void ExtendHashed(BlockKeys& keys, const nb::list& hashes, std::size_t last);

 private:
  ShardKeys keys_;
};

struct PyRegion {
  Owned<Region> region;
};

struct PyClient {
  Owned<Client> client;
};

struct PyLease {
  Owned<Lease> lease;
};

struct PyComputingMark {
  Owned<ComputingMark> mark;
};

// The region, with a Python object that is released once the region has been unregistered; None for
// no object.
std::shared_ptr<Region> KeepAlive(std::shared_ptr<Region> region, nb::object memory);

// Requests for consecutive blocks of one chain; raises InvalidArgumentError if the lengths differ.
PublishRequests RunOf(const BlockKeys& keys, const BlockKey& parent, std::uint32_t depth, const BlockWrites& writes);

// Client.acquire_lease.
PyLease AcquireLease(const PyClient& self, const Match& match, double ttl_s, double timeout_s);

// Client.mark_computing.
PyComputingMark MarkComputing(const PyClient& self, const BlockKeys& missing, double ttl_s);

// Client.join_cache.
JoinOutcome JoinCache(const PyClient& self, const BlockKeys& keys, const PyRegion& destination, double timeout_s, std::size_t min_blocks,
                      double prefill_tokens_per_s, std::string source_hint, std::string mesh_socket);

// Client.describe_blocks.
DescribeOutcome DescribeBlocks(const PyClient& self, const ModelSpec& spec, const BlockKeys& keys, const Tokens& tokens, double timeout_s,
                               std::string adapter, std::string mesh_socket);

// In the order in which they must be called: each uses types that earlier ones have bound.
void BindModel(nb::module_& module);      // kvm/model_spec.h
void BindKeys(nb::module_& module);       // kvm/block_key.h
void BindGeometry(nb::module_& module);   // kvm/geometry.h
void BindDevice(nb::module_& module);     // kvm/device.h
void BindWrites(nb::module_& module);     // kvclient/types.h, region.h: requests to publish
void BindRegion(nb::module_& module);     // kvclient/region.h
void BindComputing(nb::module_& module);  // kvclient/computing.h
void BindImport(nb::module_& module);     // kvclient/match.h, kvclient/import.h
void BindLease(nb::module_& module);      // kvclient/lease.h
void BindJoin(nb::module_& module);       // kvclient/join.h
void BindDescribe(nb::module_& module);   // kvclient/describe.h
void BindStats(nb::module_& module);      // kvclient/client.h: counters, unmapped regions
void BindClient(nb::module_& module);     // kvclient/client.h
void BindSteps(nb::module_& module);      // what a step of vLLM's says

}  // namespace kvm::python
