// The size of the host cache and of its slabs, which follows from the options alone.
//
// CheckHostCache is called once, before kvmd serves; HostCacheSlabBytes by SlabPool and by that
// check.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/system/config.h"
#include "kvm/error.h"

namespace kvm::daemon {

// The size of a slab in bytes: as configured, else a 64th of the cache, at least 64 MiB and at most
// 1 GiB, but never more than a 16th of the cache.
std::uint64_t HostCacheSlabBytes(const Config& config) noexcept;
// Checks that the quotas allow the configured cache, and that the machine and the control groups
// have memory for it beside the registries. kInvalidArgument, the option named. kSystem,
// kUnsupported: the amount of memory can't be determined. `restored`: a service manager hands this
// kvmd's memory, registries included, to the next kvmd, which makes registries of its own beside
// them.
[[nodiscard]] Status CheckHostCache(const Config& config, bool restored = false);

// "N MiB", for messages.
std::string Mib(std::uint64_t bytes);

}  // namespace kvm::daemon
