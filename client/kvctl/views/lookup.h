// A chain of keys looked up for an operator: every registry entry of each key, and how far a worker
// would get.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "client/kvctl/cli/common_options.h"
#include "client/kvctl/cli/registry_tables.h"
#include "kvclient/match.h"

namespace kvm::ctl {

struct KeyEntries {
  BlockKey key;
  std::vector<IndexEntry> entries;  // replicas, in order of publication
};

std::vector<KeyEntries> LookUp(const RegistryView& registry, std::span<const BlockKey> keys);

// Leading keys with at least one entry.
std::size_t LeadingPresent(const std::vector<KeyEntries>& keys) noexcept;
std::size_t LeadingPresent(const RegistryView& registry, std::span<const BlockKey> keys) noexcept;

// What a worker of the same domain finds: entries are hints, generations decide (I2), and only a worker's
// connection gets those. Declares a model that is declared already, and maps no payload.
[[nodiscard]] Result<Match> FindAsWorker(const CommonOptions& common, const ModelSpec& declared, std::span<const BlockKey> keys);

}  // namespace kvm::ctl
