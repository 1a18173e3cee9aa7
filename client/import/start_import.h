// From a match to a copy under way: one run per stretch of blocks with the same source region,
// handed to the backend that mapped it (Client::Import).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>

#include "client/import/import_ticket.h"
#include "kvclient/import.h"
#include "kvclient/region.h"

namespace kvm {

// What an import needs of its client.
struct ImportServices {
  std::shared_ptr<AtomicStats> stats;
  std::shared_ptr<HostCacheUses> host_cache_uses;
  std::chrono::milliseconds patience;  // for a copy whose ticket is destroyed before it has ended
};

// As Client::Import; `destination` is a region of that client.
[[nodiscard]] Result<ImportTicket> StartImport(const ImportServices& services, const Match& match, Region& destination,
                                               std::span<const std::uint32_t> blocks, const ImportOptions& options);

}  // namespace kvm
