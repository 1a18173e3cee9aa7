// What kvmd keeps of a registered region besides its row: descriptors, generations, who has it mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kvm/error.h"
#include "kvm/geometry.h"
#include "kvm/model_spec.h"
#include "proto/generation_table.h"
#include "proto/layout.h"
#include "proto/sealed_memory.h"
#include "proto/unique_fd.h"
#include "proto/wire.pb.h"

namespace kvm::daemon {

using ClientId = std::uint64_t;

struct Region {
  kvmwire::RegionDescriptor descriptor;
  std::vector<UniqueFd> fds;  // generation table, then segments that have one
  MappedMemory generation_memory;
  GenerationReader generations;
  layout::RegionInfo info{};  // what the row says
  std::uint32_t row = 0;
  ClientId owner = 0;

  // Index slot of each block's entry, kNone for none. [block_count]
  std::vector<std::uint32_t> slot_of_block;
  std::uint64_t entries = 0;
  std::uint32_t reap_from = 0;      // when leaving: blocks below have no entry any more
  std::set<ClientId> announced_to;  // who may have it mapped
  std::set<ClientId> waiting_for;   // whose acknowledgement the unregistering owner waits for

  static constexpr std::uint32_t kNone = 0xFFFFFFFF;
  bool live() const noexcept { return info.state == static_cast<std::uint32_t>(layout::RegionState::kLive); }
};

// Checks everything a client says about a region, maps its generation table and takes its descriptors.
// `spec`: of the model its fingerprint names. The message of an error names the field.
// kInvalidArgument, kBadGeometry, kPermissionDenied (seals), kModelMismatch (shard sizes), kUnsupported.
[[nodiscard]] Result<std::unique_ptr<Region>> CheckRegion(kvmwire::RegionDescriptor descriptor, std::vector<UniqueFd> fds,
                                                          const ModelSpec& spec);

}  // namespace kvm::daemon
