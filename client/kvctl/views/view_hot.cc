// kvctl hot: the prefixes that workers import most.
#include <cstring>
#include <iostream>
#include <map>
#include <unordered_map>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/hot_tree.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

constexpr std::uint32_t kMostEnds = 1024;  // all that kvmd keeps

// Where a block lies now.
struct Places {
  std::uint32_t workers = 0, host_cache = 0;  // regions
};

struct Index {
  std::unordered_map<std::uint64_t, IndexedBlock> blocks;
  std::unordered_map<std::uint64_t, Places> places;
};

Index ReadIndex(const RegistryView& registry, const std::vector<RegionEntry>& regions) {
  Index index;
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < registry.index().slots(); ++slot) {
    if (!registry.index().ReadSlot(slot, entry)) continue;
    const RegionEntry* region = FindRegion(regions, entry);
    if (region == nullptr) continue;
    index.blocks.try_emplace(entry.key.lo, IndexedBlock{entry.parent_lo, entry.depth, entry.key});
    Places& places = index.places[entry.key.lo];
    // The slabs of the host cache are live and of no client; a dead worker's region is an orphan.
    const bool slab = region->info.client_id == 0 && region->state() == layout::RegionState::kLive;
    ++(slab ? places.host_cache : places.workers);
  }
  return index;
}

std::vector<HotEnd> EndsOf(const kvmwire::StatusReply& status, const std::string& domain) {
  std::vector<HotEnd> ends;
  for (const kvmwire::DomainStatus& described : status.domains()) {
    if (described.name() != domain) continue;
    for (const kvmwire::HotPrefix& hot : described.hot()) {
      HotEnd end{.depth = hot.depth(), .uses = hot.uses(), .model = Printable(hot.model_id())};
      if (hot.key().size() != sizeof(BlockKey)) continue;
      std::memcpy(&end.key.lo, hot.key().data(), sizeof(end.key.lo));
      std::memcpy(&end.key.hi, hot.key().data() + sizeof(end.key.lo), sizeof(end.key.hi));
      ends.push_back(std::move(end));
    }
  }
  return ends;
}

// Of a block of each model, by its name; 0: models of that name differ in it, or none is declared.
std::map<std::string, std::uint32_t> BlockTokens(const std::vector<ModelEntry>& models) {
  std::map<std::string, std::uint32_t> tokens;
  for (const ModelEntry& model : models) {
    const auto [at, is_new] = tokens.try_emplace(Printable(model.spec.model_id), model.spec.block_tokens);
    if (!is_new && at->second != model.spec.block_tokens) at->second = 0;
  }
  return tokens;
}

}  // namespace

int RunHot(const CommonOptions& common, const HotOptions& options) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  kvmwire::StatusQuery query;
  query.set_hot(kMostEnds);
  Result<kvmwire::StatusReply> status = observer->Query(query);
  if (!status) return Fail(status.error());
  PrintCutListNote(*status);
  const std::vector<RegionEntry> regions = ReadRegions(observer->registry());
  const std::vector<HotEnd> ends = EndsOf(*status, observer->hello().domain());
  const Index index = ends.empty() ? Index() : ReadIndex(observer->registry(), regions);
  const auto lookup = [&](std::uint64_t lo) -> std::optional<IndexedBlock> {
    const auto found = index.blocks.find(lo);
    return found == index.blocks.end() ? std::nullopt : std::optional(found->second);
  };
  const std::vector<HotPrefixRow> rows = HottestPrefixes(ends, lookup, options.limit);
  std::map<std::string, std::uint32_t> block_tokens = BlockTokens(ReadModels(observer->registry()));
  boost::json::array prefixes;
  Table table(
      {">uses", ">ended here", ">branches", ">blocks", ">tokens", "model", ">in workers", ">in host cache", "key of the last block"});
  for (const HotPrefixRow& row : rows) {
    const auto found = index.places.find(row.key.lo);
    const Places places = found == index.places.end() ? Places() : found->second;
    const std::uint64_t blocks = std::uint64_t{row.depth} + 1, tokens = blocks * block_tokens[row.model];
    prefixes.push_back({{"key", row.key.ToHex()},
                        {"model_id", row.model},
                        {"uses", row.uses},
                        {"ended_here", row.ends},
                        {"branches", row.branches},
                        {"blocks", blocks},
                        {"tokens", tokens == 0 ? boost::json::value(nullptr) : boost::json::value(tokens)},
                        {"indexed", row.indexed},
                        {"worker_replicas", places.workers},
                        {"host_cache_replicas", places.host_cache}});
    table.Add({HumanCount(row.uses), HumanCount(row.ends), HumanCount(row.branches), HumanCount(blocks),
               tokens == 0 ? "?" : HumanCount(tokens), row.model, std::to_string(places.workers), std::to_string(places.host_cache),
               row.key.ToHex()});
  }
  if (common.json) {
    PrintJson({{"domain", Printable(observer->hello().domain())}, {"prefixes", std::move(prefixes)}, {"lists_cut", status->lists_cut()}});
  } else if (rows.empty()) {
    std::cout << "no imports were reported in domain " << Printable(observer->hello().domain()) << " lately\n";
  } else {
    table.Print(std::cout);
  }
  return kHealthy;
}

}  // namespace kvm::ctl
