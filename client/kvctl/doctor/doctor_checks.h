// Checks of kvctl doctor over data that was read before: kvmd's status, the registry, the GPUs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "client/kvctl/cli/registry_tables.h"
#include "kvm/topology.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

enum class Verdict { kOk, kWarn, kFail };
std::string_view VerdictName(Verdict verdict) noexcept;  // "ok", "warn", "fail"

struct Check {
  std::string name;
  Verdict verdict = Verdict::kOk;
  std::string detail;
};

// One finding for each problem of a client; empty if all clients are healthy.
std::vector<Check> CheckClientList(const kvmwire::StatusReply& status);

// Whether workers offer blocks to the host cache, and whether it takes them. Empty if there is no
// host cache.
std::vector<Check> CheckHostCache(const kvmwire::StatusReply& status);

// Memory of dead workers: how much there is, whose it is, and until when kvmd keeps it. That on
// hosts counts against the pods and units in which it was used; that on GPUs is of no process.
// Empty if there is none.
std::vector<Check> CheckOrphans(const kvmwire::StatusReply& status);

// Models in use that have one name and one shape, but differ in how their engines lay out or
// compute a block, so that these engines share nothing. None is the healthy state.
std::vector<Check> CheckModels(const std::vector<ModelEntry>& models, const std::vector<RegionEntry>& regions);

// Whether this kvctl can see GPUs, and whether they reach each other. That there is no CUDA or no
// GPU is no finding. `toolkit`: CudaToolkitVersion(); `topology`: ReadTopology().
std::vector<Check> CheckGpus(const std::string& toolkit, const Result<Topology>& topology);

// Compares the GPU regions in the registry with the GPUs that this kvctl sees; for information
// only. Empty if there are neither.
std::vector<Check> CheckGpuRegions(const std::vector<RegionEntry>& regions, const Result<Topology>& topology);

}  // namespace kvm::ctl
