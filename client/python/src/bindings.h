// The parts of the extension module; each binds the types of one public header.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include <nanobind/nanobind.h>

#include "client/python/src/owned.h"
#include "kvclient/kvclient.h"

NB_MAKE_OPAQUE(std::vector<kvm::BlockKey>)
NB_MAKE_OPAQUE(std::vector<kvm::BlockWrite>)

namespace kvm::python {

using BlockKeys = std::vector<BlockKey>;
using BlockWrites = std::vector<BlockWrite>;

struct PyRegion {
  Owned<Region> region;
  std::vector<std::uint64_t> segment_bytes;
};

// In the order in which they must run: each uses types that those before it have bound.
void BindModel(nb::module_& module);     // kvm/model_spec.h
void BindKeys(nb::module_& module);      // kvm/block_key.h
void BindGeometry(nb::module_& module);  // kvm/geometry.h
void BindRegion(nb::module_& module);    // kvclient/region.h, kvclient/types.h
void BindImport(nb::module_& module);    // kvclient/match.h, kvclient/import.h
void BindClient(nb::module_& module);    // kvclient/client.h

}  // namespace kvm::python
