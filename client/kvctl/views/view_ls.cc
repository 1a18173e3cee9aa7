// kvctl ls: entries of the block index, by model, region or prefix.
#include <algorithm>
#include <iostream>
#include <optional>
#include <queue>
#include <tuple>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/descendants.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

struct Filter {
  std::optional<std::vector<std::uint32_t>> models, regions;  // rows
  std::optional<BlockKey> prefix;

  static bool Has(const std::optional<std::vector<std::uint32_t>>& rows, std::uint32_t row) {
    return !rows || std::find(rows->begin(), rows->end(), row) != rows->end();
  }
};

Result<Filter> MakeFilter(const LsOptions& options, const std::vector<ModelEntry>& models, const std::vector<RegionEntry>& regions) {
  Filter filter;
  if (!options.model.empty()) {
    Result<std::vector<ModelEntry>> selected = SelectModels(models, options.model);
    if (!selected) return selected.error();
    filter.models.emplace();
    for (const ModelEntry& model : *selected) filter.models->push_back(model.row);
  }
  if (!options.region.empty()) {
    Result<std::vector<std::uint32_t>> rows = SelectRegions(regions, options.region);
    if (!rows) return rows.error();
    filter.regions = std::move(*rows);
  }
  if (!options.prefix.empty()) {
    Result<BlockKey> key = BlockKey::FromHex(options.prefix);
    if (!key) return MakeError(Errc::kInvalidArgument, "--prefix: " + key.error().message);
    filter.prefix = *key;
  }
  return filter;
}

// Order of the listing: by region and block, or along the prefix.
bool Before(const IndexEntry& a, const IndexEntry& b, bool by_depth) {
  const auto rank = [&](const IndexEntry& entry) {
    return std::tuple(by_depth ? entry.depth : 0, entry.region, entry.block, entry.key.hi);
  };
  return rank(a) < rank(b);
}

struct Listing {
  std::vector<IndexEntry> entries;
  std::uint64_t total = 0;
};

// One pass over the index that keeps the first `limit` entries in listing order.
Listing Collect(const RegistryView& registry, const Filter& filter, const std::vector<RegionEntry>& regions, std::uint64_t limit) {
  std::optional<Ancestry> ancestry;
  if (filter.prefix) ancestry.emplace(registry.index());
  const auto before = [&](const IndexEntry& a, const IndexEntry& b) { return Before(a, b, filter.prefix.has_value()); };
  std::priority_queue<IndexEntry, std::vector<IndexEntry>, decltype(before)> kept(before);
  Listing listing;
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < registry.index().slots(); ++slot) {
    if (!registry.index().ReadSlot(slot, entry) || !Filter::Has(filter.regions, entry.region)) continue;
    if (filter.models) {
      const RegionEntry* region = FindRegion(regions, entry);
      if (region == nullptr || !Filter::Has(filter.models, region->info.model)) continue;
    }
    if (ancestry && !ancestry->Descends(entry.key.lo, filter.prefix->lo)) continue;
    ++listing.total;
    if (limit != 0 && kept.size() == limit) {
      if (!before(entry, kept.top())) continue;
      kept.pop();
    }
    kept.push(entry);
  }
  listing.entries.resize(kept.size());
  for (auto at = listing.entries.rbegin(); at != listing.entries.rend(); ++at) {
    *at = kept.top();
    kept.pop();
  }
  return listing;
}

std::string HexWord(std::uint64_t lo) { return BlockKey{lo, 0}.ToHex().substr(0, 16); }

}  // namespace

int RunLs(const CommonOptions& common, const LsOptions& options) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  const std::vector<ModelEntry> models = ReadModels(observer->registry());
  const std::vector<RegionEntry> regions = ReadRegions(observer->registry());
  Result<Filter> filter = MakeFilter(options, models, regions);
  if (!filter) return Fail(filter.error());
  const Listing listing = Collect(observer->registry(), *filter, regions, options.limit);
  if (common.json) {
    boost::json::array blocks;
    for (const IndexEntry& entry : listing.entries) {
      const RegionEntry* region = FindRegion(regions, entry);
      blocks.push_back({{"key", entry.key.ToHex()},
                        {"parent", HexWord(entry.parent_lo)},
                        {"depth", entry.depth},
                        {"region", entry.region},
                        {"region_name", region != nullptr ? boost::json::value(region->name()) : boost::json::value(nullptr)},
                        {"block", entry.block},
                        {"generation", entry.generation},
                        {"published_s", entry.published_s}});
    }
    PrintJson({{"total", listing.total}, {"blocks", std::move(blocks)}});
    return kHealthy;
  }
  Table table({"key", "parent", ">depth", "region", ">block", ">generation", ">published at"});
  for (const IndexEntry& entry : listing.entries) {
    const RegionEntry* region = FindRegion(regions, entry);
    table.Add({entry.key.ToHex(), HexWord(entry.parent_lo), std::to_string(entry.depth),
               region != nullptr ? region->name() : "row " + std::to_string(entry.region) + " (gone)", std::to_string(entry.block),
               std::to_string(entry.generation), "+" + HumanSeconds(entry.published_s)});
  }
  table.Print(std::cout);
  if (listing.entries.size() < listing.total) {
    std::cout << "… " << HumanCount(listing.total - listing.entries.size()) << " more (--limit 0 shows all)\n";
  }
  return kHealthy;
}

}  // namespace kvm::ctl
