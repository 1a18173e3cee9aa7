// Commands of kvm_bench that put kvmd next to something else, in one run: `kvm_bench find`,
// `kvm_bench import`. They are kvctl's benchmarks (client/kvctl/bench) with rows for the other one.
// Others measure kvmd-mesh: `mesh` and `mesh-delays` between two nodes, `held` what it costs a
// node, `directory` lookups, `disk` the disk cache, `events` what routers are told. Without a
// command, kvm_bench runs the micro-benchmarks.
#pragma once

#include "client/kvctl/cli/common_options.h"

namespace kvm::bench {

// Lookups next to MGET of the same keys at a redis-server. Only where hiredis is.
void AddFindCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action);
// Joins of blocks of another node, over whatever the nodes' kvmd-mesh use.
void AddMeshCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action);
// Joins that bring nothing, and when another node finds what was published.
void AddMeshDelaysCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action);
// Lookups in the summaries of many nodes. Only where there is kvmd-mesh.
void AddDirectoryCommand(CLI::App& app, ctl::Action& action);
// What a kvmd-mesh costs beside a node that holds many blocks.
void AddHeldCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action);
// What the disk cache of kvmd-mesh writes and reads. Only where there is kvmd-mesh.
void AddDiskCommand(CLI::App& app, ctl::Action& action);
// What kvmd-mesh tells routers, to one subscriber. Only where ZeroMQ is.
void AddEventsCommand(CLI::App& app, ctl::Action& action);
// Imports between GPUs next to CUDA's own copies of as many bytes. Only with the CUDA toolkit.
void AddImportCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action);

}  // namespace kvm::bench
