// Queries kvmd's host cache.
#pragma once

#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"

namespace kvm::test {

inline kvmwire::HostCacheDomain HostCacheOf(RegistryProbe& probe) { return probe.Status().domains(0).host_cache(); }

// Waits until the host cache has so many blocks; returns how many it had then. It may have fewer a
// moment later, while blocks that are being stored have displaced others.
inline std::uint64_t StoredEventually(RegistryProbe& probe, std::uint64_t blocks) {
  std::uint64_t stored = 0;
  Eventually([&] { return (stored = HostCacheOf(probe).blocks()) >= blocks; });
  return stored;
}

}  // namespace kvm::test
