// Client::Import: starts the copy for a match. Consecutive blocks with the same source region form
// a run, which is passed to the backend that has mapped that region.
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
  std::chrono::milliseconds patience;  // how long the destructor of a ticket waits for its copy
};

// See Client::Import; `destination` is a region of that client.
[[nodiscard]] Result<ImportTicket> StartImport(const ImportServices& services, const Match& match, Region& destination,
                                               std::span<const std::uint32_t> blocks, const ImportOptions& options);

}  // namespace kvm
