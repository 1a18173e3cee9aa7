#include "client/kvctl/views/lookup.h"

#include <array>

#include "kvclient/client.h"

namespace kvm::ctl {

std::vector<KeyEntries> LookUp(const RegistryView& registry, std::span<const BlockKey> keys) {
  std::vector<KeyEntries> found;
  found.reserve(keys.size());
  std::array<IndexEntry, layout::kMaxReplicas> replicas;
  for (const BlockKey& key : keys) {
    const std::size_t count = registry.index().Find(key, replicas);
    found.push_back({key, {replicas.begin(), replicas.begin() + static_cast<std::ptrdiff_t>(count)}});
  }
  return found;
}

std::size_t LeadingPresent(const std::vector<KeyEntries>& keys) noexcept {
  std::size_t leading = 0;
  while (leading < keys.size() && !keys[leading].entries.empty()) ++leading;
  return leading;
}

std::size_t LeadingPresent(const RegistryView& registry, std::span<const BlockKey> keys) noexcept {
  std::size_t leading = 0;
  IndexEntry entry;
  while (leading < keys.size() && registry.index().Find(keys[leading], {&entry, 1}) != 0) ++leading;
  return leading;
}

Result<Match> FindAsWorker(const CommonOptions& common, const ModelSpec& declared, std::span<const BlockKey> keys) {
  ClientOptions options;
  options.socket_path = common.socket;
  options.name = "kvctl";
  options.timeout = common.timeout();
  options.map_payload = false;
  Result<std::shared_ptr<Client>> client = Client::Connect(options);
  if (!client) return client.error();
  if (Result<Model> model = (*client)->DeclareModel(declared, After(common.timeout())); !model) return model.error();
  return (*client)->Find(keys);
}

}  // namespace kvm::ctl
