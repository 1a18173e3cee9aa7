// Paths between GPUs, for the CUDA backend. The public interface is kvm/topology.h.
#pragma once

#include "kvm/topology.h"

namespace kvm {

// Path from the importer's GPU to the owner's, both by ordinal in this process.
// kUnsupported: no peer access between them; the message says so.
[[nodiscard]] Result<MemoryPath> PathBetween(int importer, int owner);

}  // namespace kvm
