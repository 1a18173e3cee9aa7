// kvctl find: where the blocks of a prompt are.
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/lookup.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

struct Found {
  std::vector<KeyEntries> keys;
  std::size_t present = 0;     // number of leading keys that have an entry
  std::optional<Match> match;  // the match that a worker gets; empty if the model is not known
  std::vector<RegionEntry> regions;

  std::size_t Usable() const { return match ? match->size() : present; }
};

// The model of the keys: the one that was given, or that of the region with the first block.
std::optional<ModelSpec> ModelOf(const KeyQuery& query, const Found& found, const std::vector<ModelEntry>& models) {
  for (const ModelEntry& model : models) {
    if (query.spec && model.spec == *query.spec) return model.spec;
  }
  if (query.spec) return std::nullopt;
  for (const KeyEntries& key : found.keys) {
    for (const IndexEntry& entry : key.entries) {
      const RegionEntry* region = FindRegion(found.regions, entry);
      const ModelEntry* model = region == nullptr ? nullptr : FindModel(models, region->info.model);
      if (model != nullptr) return model->spec;
    }
  }
  return std::nullopt;
}

boost::json::object EntryJson(const IndexEntry& entry, const RegionEntry* region) {
  boost::json::object object{
      {"region", entry.region}, {"region_epoch", entry.region_epoch}, {"block", entry.block}, {"generation", entry.generation}};
  if (region != nullptr) {
    object["region_name"] = region->name();
    object["pid"] = region->info.owner_pid;
    object["state"] = RegionStateName(region->state());
  } else {
    object["state"] = "gone";
  }
  return object;
}

boost::json::object FoundJson(const KeyQuery& query, const Found& found) {
  boost::json::array blocks;
  for (std::size_t i = 0; i < found.keys.size(); ++i) {
    boost::json::array replicas;
    for (const IndexEntry& entry : found.keys[i].entries) replicas.push_back(EntryJson(entry, FindRegion(found.regions, entry)));
    blocks.push_back(
        {{"key", found.keys[i].key.ToHex()}, {"readable", found.match && i < found.match->size()}, {"replicas", std::move(replicas)}});
  }
  boost::json::object object{{"keys", query.keys.size()},
                             {"lcp", found.Usable()},
                             {"present", found.present},
                             {"end", found.match ? boost::json::value(MatchEndName(found.match->end())) : boost::json::value(nullptr)},
                             {"blocks", std::move(blocks)}};
  if (query.spec) {
    object["fingerprint"] = query.spec->ComputeFingerprint().ToHex();
    object["lcp_tokens"] = found.Usable() * query.spec->block_tokens;
  }
  return object;
}

void PrintFound(const KeyQuery& query, const Found& found, std::uint64_t limit) {
  std::cout << "longest common prefix: " << found.Usable() << " of " << found.keys.size() << " blocks";
  if (query.spec)
    std::cout << " (" << HumanCount(found.Usable() * query.spec->block_tokens) << " of " << HumanCount(query.tokens.size()) << " tokens)";
  if (found.match && found.Usable() < found.keys.size()) std::cout << "; the next one is " << MatchEndName(found.match->end());
  std::cout << "\n\n";
  Table table({">#", "key", "region", "state", ">pid", ">block", ">generation", "readable"});
  std::uint64_t rows = 0;
  for (std::size_t i = 0; i < found.keys.size() && (limit == 0 || rows < limit); ++i, ++rows) {
    const KeyEntries& key = found.keys[i];
    if (key.entries.empty()) {
      table.Add({std::to_string(i), key.key.ToHex(), "-", "absent"});
      continue;
    }
    for (const IndexEntry& entry : key.entries) {
      const RegionEntry* region = FindRegion(found.regions, entry);
      const bool chosen =
          found.match && i < found.match->size() && (*found.match)[i].region == entry.region && (*found.match)[i].block == entry.block;
      table.Add({std::to_string(i), key.key.ToHex(), region != nullptr ? region->name() : "row " + std::to_string(entry.region),
                 region != nullptr ? std::string(RegionStateName(region->state())) : "gone",
                 region != nullptr ? std::to_string(region->info.owner_pid) : "", std::to_string(entry.block),
                 std::to_string(entry.generation),
                 chosen                    ? "yes"
                 : !found.match            ? "?"
                 : i < found.match->size() ? "replica"
                                           : "no"});
    }
  }
  table.Print(std::cout);
  if (rows < found.keys.size()) std::cout << "… " << found.keys.size() - rows << " more (--limit 0 shows all)\n";
}

}  // namespace

int RunFind(const CommonOptions& common, const FindCommandOptions& options) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  const std::vector<ModelEntry> models = ReadModels(observer->registry());
  Result<KeyQuery> query = ResolveKeys(options.query, models);
  if (!query) return Fail(query.error());
  Found found;
  found.regions = ReadRegions(observer->registry());
  found.keys = LookUp(observer->registry(), query->keys);
  found.present = LeadingPresent(found.keys);
  if (const std::optional<ModelSpec> model = ModelOf(*query, found, models)) {
    Result<Match> match = FindAsWorker(common, *model, query->keys);
    if (!match) return Fail(match.error());
    found.match = std::move(*match);
  }
  if (common.json) {
    PrintJson(FoundJson(*query, found));
  } else {
    PrintFound(*query, found, options.limit);
  }
  return kHealthy;
}

}  // namespace kvm::ctl
