// An observer without libkvclient: reads kvmd's registry and its status.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "proto/shm/registry_view.h"
#include "tests/support/kvmd/wire_client.h"

namespace kvm::test {

// Maps the registry segment that came with the reply to hello. kProtocol: none did.
[[nodiscard]] Result<RegistryView> OpenRegistry(const Received& hello_reply);

class RegistryProbe {
 public:
  explicit RegistryProbe(const std::string& socket_path);

  const RegistryView& registry() const noexcept { return registry_; }
  std::uint64_t live_entries() const noexcept { return registry_.header().live_entries.load(); }
  std::uint64_t live_regions() const noexcept { return registry_.header().live_regions.load(); }
  std::uint64_t live_models() const noexcept { return registry_.header().live_models.load(); }
  // Rows of the region table that are in use, of owner `pid` if it is not 0.
  std::size_t RegionRows(pid_t pid = 0) const;
  // Index slots in use, counted one by one.
  std::uint64_t CountSlots() const;
  kvmwire::StatusReply Status(bool clients = false);

 private:
  WireClient connection_;
  RegistryView registry_;
};

}  // namespace kvm::test
