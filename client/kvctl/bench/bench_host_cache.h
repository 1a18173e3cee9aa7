// Benchmarks of imports from kvmd's host cache, on a kvmd of their own.
#pragma once

#include <string>
#include <vector>

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/bench/import_run.h"

namespace kvm::ctl {

// The arguments of a kvmd whose host cache has room for `bytes` in blocks of `block_bytes`, and
// that keeps no orphans.
std::vector<std::string> HostCacheArguments(std::uint64_t bytes, std::uint64_t block_bytes);
// kDeadlineExceeded: the host cache did not have that many blocks in time.
[[nodiscard]] Status WaitUntilCached(const std::string& socket, std::uint64_t blocks);

// `options.bytes` in scattered 64 KiB chunks, and in blocks of that size, from the host cache to
// the last of `devices`. The blocks are offloaded by a process on the first of `devices`.
[[nodiscard]] Result<std::vector<BenchRow>> HostCacheRows(const CommonOptions& common, const BenchOptions& options,
                                                          const std::vector<DeviceUuid>& devices, const BesideRow& beside);

}  // namespace kvm::ctl
