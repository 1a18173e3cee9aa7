// Looks up a chain of keys for an operator: all registry entries of each key, and the prefix that a
// worker would find.
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

// What a worker of the same domain finds. Entries are hints and generations decide (I2), and kvmd
// gives generation tables to workers only, so this connects as a worker. It declares a model that
// is declared already, and maps no payload.
[[nodiscard]] Result<Match> FindAsWorker(const CommonOptions& common, const ModelSpec& declared, std::span<const BlockKey> keys);

}  // namespace kvm::ctl
