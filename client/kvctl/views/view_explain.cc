// kvctl explain: why a prompt, or a chain of keys, is a miss.
//
// It looks for reasons from the outside in: is the model declared, does a region serve it, from
// which block on is the chain absent, are the published blocks readable, and would another shard,
// another model of the same name or other extra keys have matched.
#include <iostream>
#include <set>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/lookup.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

struct Reason {
  std::string kind;  // stable, for programs
  std::string text;
  boost::json::object detail;
};

class Explainer {
 public:
  Explainer(const CommonOptions& common, const RegistryView& registry, const KeyQuery& query)
      : common_(common), registry_(registry), query_(query), models_(ReadModels(registry)), regions_(ReadRegions(registry)) {}

  Status Run() {
    keys_ = LookUp(registry_, query_.keys);
    present_ = LeadingPresent(keys_);
    if (query_.spec) ExplainModel();
    if (Status done = ExplainBlocks(); !done) return done;
    if (query_.spec && present_ < keys_.size()) {
      ExplainOtherShards();
      ExplainOtherModels();
      ExplainExtras();
    }
    return {};
  }

  bool Hit() const { return readable_.value_or(0) == keys_.size(); }

  boost::json::object Json() const {
    boost::json::array reasons;
    for (const Reason& reason : reasons_) {
      boost::json::object object{{"kind", reason.kind}, {"text", reason.text}};
      for (const auto& member : reason.detail) object[member.key()] = member.value();
      reasons.push_back(std::move(object));
    }
    return {{"hit", Hit()},
            {"keys", keys_.size()},
            {"present", present_},
            {"readable", readable_ ? boost::json::value(*readable_) : boost::json::value(nullptr)},
            {"reasons", std::move(reasons)}};
  }

  void Print() const {
    std::cout << (Hit() ? "hit: " : "miss: ") << readable_.value_or(present_) << " of " << keys_.size() << " blocks can be imported\n";
    for (const Reason& reason : reasons_) std::cout << "  - " << reason.text << '\n';
  }

 private:
  void Add(std::string kind, std::string text, boost::json::object detail = {}) {
    reasons_.push_back({std::move(kind), std::move(text), std::move(detail)});
  }

  const ModelEntry* DeclaredModel() const {
    if (!query_.spec) {
      for (const KeyEntries& key : keys_) {
        for (const IndexEntry& entry : key.entries) {
          const RegionEntry* region = FindRegion(regions_, entry);
          if (region != nullptr) return FindModel(models_, region->info.model);
        }
      }
      return nullptr;
    }
    for (const ModelEntry& model : models_) {
      if (model.spec == *query_.spec) return &model;
    }
    return nullptr;
  }

  void ExplainModel() {
    const ModelEntry* declared = DeclaredModel();
    if (declared != nullptr) {
      std::size_t live = 0;
      for (const RegionEntry& region : regions_) live += region.info.model == declared->row && region.state() == layout::RegionState::kLive;
      if (live == 0) Add("no_region", "the model is declared, but no live region serves it");
      return;
    }
    Add("model_not_declared",
        "no client has declared this model (fingerprint " + ShortFingerprint(query_.spec->ComputeFingerprint()) + ")");
    for (const ModelEntry& model : models_) {
      if (model.spec.model_id != query_.spec->model_id) continue;
      boost::json::array fields;
      std::vector<std::string> texts;
      for (const ModelFieldDifference& difference : Difference(*query_.spec, model.spec)) {
        texts.push_back(difference.field + " is \"" + Printable(difference.ours) + "\" here and \"" + Printable(difference.theirs) +
                        "\" there");
        fields.push_back({{"field", difference.field}, {"ours", difference.ours}, {"theirs", difference.theirs}});
      }
      Add("model_field", "declared model " + ShortFingerprint(model.fingerprint) + " has the same model_id, but " + JoinWithCommas(texts),
          {{"model", model.row}, {"differences", std::move(fields)}});
    }
  }

  Status ExplainBlocks() {
    const ModelEntry* model = DeclaredModel();
    std::optional<Match> match;
    if (model != nullptr) {
      Result<Match> found = FindAsWorker(common_, model->spec, query_.keys);
      if (!found) return found.error();
      match = std::move(*found);
      readable_ = match->size();
    } else if (present_ == 0) {
      readable_ = 0;
    }
    const std::size_t first_bad = match ? std::min(match->size(), present_) : present_;
    if (first_bad < present_) ExplainUnreadable(first_bad, *match);
    if (present_ < keys_.size()) ExplainAbsent();
    return {};
  }

  void ExplainUnreadable(std::size_t index, const Match& match) {
    const std::string block = "block " + std::to_string(index);
    for (const IndexEntry& entry : keys_[index].entries) {
      const RegionEntry* region = FindRegion(regions_, entry);
      if (region == nullptr) {
        Add("region_gone", block + " was published by a region that is gone (row " + std::to_string(entry.region) + ")",
            {{"index", index}});
      } else if (region->state() != layout::RegionState::kLive) {
        Add("region_not_live",
            block + " lies in region " + region->name() + " (pid " + std::to_string(region->info.owner_pid) + "), which is " +
                std::string(RegionStateName(region->state())),
            {{"index", index}, {"region", region->row}, {"state", RegionStateName(region->state())}});
      } else {
        Add(std::string(MatchEndName(match.end())),
            block + " is listed in region " + region->name() + ", but a worker finds it " + std::string(MatchEndName(match.end())) +
                (match.end() == MatchEnd::kStale ? ": its owner has reused the memory since" : ""),
            {{"index", index}, {"region", region->row}});
      }
    }
  }

  void ExplainAbsent() {
    std::size_t later = 0;
    for (std::size_t i = present_; i < keys_.size(); ++i) later += !keys_[i].entries.empty();
    std::string text =
        present_ == 0 ? "not even the first block is published" : "the chain is absent from block " + std::to_string(present_) + " on";
    if (query_.spec) text += " (token " + HumanCount(present_ * query_.spec->block_tokens) + ")";
    if (later > 0) text += "; " + std::to_string(later) + " later blocks are there but can't be reached through the hole";
    Add("absent", text, {{"index", present_}, {"key", keys_[present_].key.ToHex()}, {"later_present", later}});
  }

  void ExplainOtherShards() {
    std::set<Shard> shards;
    const ModelEntry* model = DeclaredModel();
    for (const RegionEntry& region : regions_) {
      if (model != nullptr && region.info.model == model->row) shards.insert(region.shard());
    }
    shards.erase(query_.shard);
    for (const Shard& shard : shards) {
      const std::size_t count = LeadingPresent(registry_, query_.KeysFor(*query_.spec, shard, query_.extras));
      if (count <= present_) continue;
      Add("other_shard",
          std::to_string(count) + " blocks are published by another shard: " + ShardName(shard) + ", not " + ShardName(query_.shard),
          {{"shard", ToJson(shard)}, {"blocks", count}});
    }
  }

  void ExplainOtherModels() {
    for (const ModelEntry& model : models_) {
      if (model.spec == *query_.spec) continue;
      const std::size_t count = LeadingPresent(registry_, query_.KeysFor(model.spec, query_.shard, query_.extras));
      if (count == 0) continue;
      std::vector<std::string> names;
      for (const ModelFieldDifference& difference : Difference(*query_.spec, model.spec)) names.push_back(difference.field);
      Add("other_model",
          std::to_string(count) + " blocks of the same tokens are published for model " + ShortFingerprint(model.fingerprint) +
              ", which differs in " + JoinWithCommas(names),
          {{"model", model.row}, {"blocks", count}});
    }
  }

  // The extra keys of another request can't be known, but a chain without extra keys can be tried.
  void ExplainExtras() {
    if (query_.extras.empty()) return;
    const std::size_t count = LeadingPresent(registry_, query_.KeysFor(*query_.spec, query_.shard, {}));
    if (count <= present_) return;
    Add("extra_keys", std::to_string(count) + " blocks are published without the LoRA or cache salt given here", {{"blocks", count}});
  }

  const CommonOptions& common_;
  const RegistryView& registry_;
  const KeyQuery& query_;
  const std::vector<ModelEntry> models_;
  const std::vector<RegionEntry> regions_;
  std::vector<KeyEntries> keys_;
  std::size_t present_ = 0;
  std::optional<std::size_t> readable_;
  std::vector<Reason> reasons_;
};

}  // namespace

int RunExplain(const CommonOptions& common, const KeyQueryOptions& options) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  Result<KeyQuery> query = ResolveKeys(options, ReadModels(observer->registry()));
  if (!query) return Fail(query.error());
  Explainer explainer(common, observer->registry(), *query);
  if (Status done = explainer.Run(); !done) return Fail(done.error());
  if (common.json) {
    PrintJson(explainer.Json());
  } else {
    explainer.Print();
  }
  return kHealthy;
}

}  // namespace kvm::ctl
