// Queries kvmd's host cache.
#pragma once

#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"

namespace kvm::test {

inline kvmwire::HostCacheDomain HostCacheOf(RegistryProbe& probe) { return probe.Status().domains(0).host_cache(); }

// Waits until the host cache has so many blocks; returns how many it has.
inline std::uint64_t StoredEventually(RegistryProbe& probe, std::uint64_t blocks) {
  Eventually([&] { return HostCacheOf(probe).blocks() >= blocks; });
  return HostCacheOf(probe).blocks();
}

}  // namespace kvm::test
