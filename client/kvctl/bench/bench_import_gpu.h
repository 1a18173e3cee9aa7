// bench import on GPUs: a peer process on one GPU, this process on another one, through kvmd and
// libkvclient.
#pragma once

#include <vector>

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/bench/import_run.h"
#include "client/kvctl/workload/pool_memory.h"

namespace kvm::ctl {

// What the GPUs of `memory` can do: the first is the exporter's, the second the importer's; without
// a second one, the rows of one GPU only. None is of the host cache with --on-this-node: that
// kvmd's is not ours to fill.
[[nodiscard]] Result<std::vector<BenchRow>> MeasureGpuImports(const CommonOptions& common, const BenchOptions& options,
                                                              const PoolMemory& memory, const BesideRow& beside = {});
// The report of such rows, but for the rows themselves.
BenchReport GpuImportReport(const CommonOptions& common, const BenchOptions& options, const PoolMemory& memory);
// The first two GPUs of `memory`.
PoolMemory FirstTwo(PoolMemory memory);

// `bytes` of a run is a multiple of it: the smallest row has 1/64 of `bytes`, in blocks of 1 MiB.
inline constexpr std::uint64_t kGpuBytesStep = std::uint64_t{64} << 20;

}  // namespace kvm::ctl
