// How large the host cache and its slabs are to be, from the options alone.
//
// CheckHostCache is called once, before kvmd serves; HostCacheSlabBytes by SlabPool and by that
// check.
#pragma once

#include <cstdint>
#include <string>

#include "daemon/system/config.h"
#include "kvm/error.h"

namespace kvm::daemon {

// Bytes of a slab: as configured, else a 64th of the cache, 64 MiB to 1 GiB, but never more than a
// 16th.
std::uint64_t HostCacheSlabBytes(const Config& config) noexcept;
// Whether the quotas, and machine and control groups beside the registries, are large enough for
// it. kInvalidArgument, the option named. kSystem, kUnsupported: how much memory there is can't be
// told. `restored`: a kvmd that takes this one's place is given what it holds, registries too, and
// makes its own beside them.
[[nodiscard]] Status CheckHostCache(const Config& config, bool restored = false);

// "N MiB", for messages.
std::string Mib(std::uint64_t bytes);

}  // namespace kvm::daemon
