// Huge pages that the administrator has reserved.
#pragma once

#include <cstdint>

#include "daemon/system/huge_page_maker.h"

namespace kvm::daemon {

// The size of all reserved pages of kHugePageBytes that are free; 0 if unknown.
std::uint64_t FreeReservedHugeBytes() noexcept;

}  // namespace kvm::daemon
