// What kvmd keeps of a registered region besides its row: descriptors, generations, who has it mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/model_table.h"
#include "daemon/slot_map.h"
#include "kvm/error.h"
#include "kvm/geometry.h"
#include "kvm/model_spec.h"
#include "proto/generation_table.h"
#include "proto/layout.h"
#include "proto/sealed_memory.h"
#include "proto/unique_fd.h"
#include "proto/wire.pb.h"

namespace kvm::daemon {

// What one client holds in a domain, over all its regions.
struct Account {
  std::uint32_t regions = 0;
  std::uint64_t blocks = 0;
  std::uint64_t fds = 0;
  std::uint64_t entries = 0;
};

inline constexpr ClientId kNoClient = 0;  // owns what kvmd itself keeps

// Who fills a region that kvmd keeps.
class RegionKeeper {
 public:
  virtual ~RegionKeeper() = default;
  // The entry of `block` has left the index.
  virtual void EntryErased(std::uint32_t block) noexcept = 0;
};

struct Region {
  kvmwire::RegionDescriptor descriptor;
  std::vector<UniqueFd> fds;  // generation table, then segments that have one
  MappedMemory generation_memory;
  GenerationReader generations;
  layout::RegionInfo info{};  // what the row says
  std::uint32_t row = 0;
  ClientId owner = 0;

  RegionKeeper* keeper = nullptr;  // of a live chunk of the host cache

  Account* account = nullptr;  // the owner's; lives as long as the region

  SlotMap slots;  // index slot of each block's entry
  std::uint64_t entries = 0;
  std::uint32_t reap_from = 0;      // when leaving: blocks below have no entry any more
  std::set<ClientId> announced_to;  // who may have it mapped
  std::set<ClientId> waiting_for;   // whose acknowledgement the unregistering owner waits for

  bool live() const noexcept { return info.state == static_cast<std::uint32_t>(layout::RegionState::kLive); }
};

// Checks everything a client says about a region, maps its generation table and takes its descriptors.
// `spec`: of the model its fingerprint names. The message of an error names the field.
// kInvalidArgument, kBadGeometry, kPermissionDenied (seals), kModelMismatch (shard sizes), kUnsupported,
// kResourceExhausted.
[[nodiscard]] Result<std::unique_ptr<Region>> CheckRegion(kvmwire::RegionDescriptor descriptor, std::vector<UniqueFd> fds,
                                                          const ModelSpec& spec);

}  // namespace kvm::daemon
