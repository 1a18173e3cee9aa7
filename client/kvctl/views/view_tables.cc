// kvctl regions and kvctl models: the tables of the registry.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <map>
#include <string>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

boost::json::object RegionJson(const RegionEntry& region, const ModelEntry* model) {
  const layout::RegionInfo& info = region.info;
  boost::json::object object{{"region", region.row},
                             {"region_epoch", info.region_epoch},
                             {"name", region.name()},
                             {"state", RegionStateName(region.state())},
                             {"model", info.model},
                             {"shard", ToJson(region.shard())},
                             {"handle_kind", HandleKindName(static_cast<layout::HandleKind>(info.handle_kind))},
                             {"device", DeviceName(region.device())},
                             {"blocks", info.block_count},
                             {"block_bytes", info.block_bytes},
                             {"segments", info.segment_count},
                             {"entries", info.live_entries},
                             {"host_cache", info.client_id == 0},
                             {"client_id", info.client_id},
                             {"pid", info.owner_pid},
                             {"uid", info.owner_uid},
                             {"registered_ms", info.registered_ms}};
  if (model != nullptr) object["model_id"] = Printable(model->spec.model_id);
  return object;
}

// What clients of each model have reported in the observer's own domain, by the bytes of its
// fingerprint. Empty where kvmd is older than these totals.
std::map<std::string, kvmwire::StatsReport> TotalsByModel(const Observer& observer, const kvmwire::StatusReply& status) {
  std::map<std::string, kvmwire::StatsReport> totals;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    if (domain.name() != observer.hello().domain()) continue;
    for (const kvmwire::ModelTotals& model : domain.model_totals()) totals[model.fingerprint()] = model.counters();
  }
  return totals;
}

}  // namespace

int RunRegions(const CommonOptions& common) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  const std::vector<ModelEntry> models = ReadModels(observer->registry());
  const std::vector<RegionEntry> regions = ReadRegions(observer->registry());
  if (common.json) {
    boost::json::array array;
    for (const RegionEntry& region : regions) array.push_back(RegionJson(region, FindModel(models, region.info.model)));
    PrintJson({{"regions", std::move(array)}});
    return kHealthy;
  }
  Table table(
      {">row", "name", "state", "model", "shard", "memory", "device", ">pid", ">blocks", ">block size", ">total", ">published", ">full"});
  for (const RegionEntry& region : regions) {
    const layout::RegionInfo& info = region.info;
    const ModelEntry* model = FindModel(models, info.model);
    table.Add({std::to_string(region.row), region.name(), std::string(RegionStateName(region.state())),
               model != nullptr ? Printable(model->spec.model_id) : "row " + std::to_string(info.model), ShardName(region.shard()),
               std::string(HandleKindName(static_cast<layout::HandleKind>(info.handle_kind))), DeviceName(region.device()),
               info.client_id == 0 ? "kvmd" : std::to_string(info.owner_pid), HumanCount(info.block_count), HumanBytes(info.block_bytes),
               HumanBytes(region.size_bytes()), HumanCount(info.live_entries),
               HumanPercent(static_cast<double>(info.live_entries), info.block_count)});
  }
  table.Print(std::cout);
  return kHealthy;
}

int RunModels(const CommonOptions& common) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  const std::vector<ModelEntry> models = ReadModels(observer->registry());
  const std::vector<RegionEntry> regions = ReadRegions(observer->registry());
  kvmwire::StatusQuery query;
  query.set_models(true);
  const Result<kvmwire::StatusReply> status = observer->Query(query);
  if (!status) return Fail(status.error());
  PrintCutListNote(*status);
  const std::map<std::string, kvmwire::StatsReport> totals = TotalsByModel(*observer, *status);
  boost::json::array array;
  Table table({">row", "model", "revision", "fingerprint", "kv dtype", "layout", ">layers", ">kv heads", ">head size", ">block tokens",
               "tp x pp", ">regions", ">blocks", ">lookups", ">keys found", ">imported"});
  for (const ModelEntry& model : models) {
    std::uint64_t region_count = 0, entries = 0;
    for (const RegionEntry& region : regions) {
      if (region.info.model != model.row) continue;
      region_count++;
      entries += region.info.live_entries;
    }
    const auto found = totals.find({reinterpret_cast<const char*>(model.fingerprint.bytes.data()), model.fingerprint.bytes.size()});
    if (common.json) {
      boost::json::object object{{"model", model.row},
                                 {"fingerprint", model.fingerprint.ToHex()},
                                 {"spec", ToJson(model.spec)},
                                 {"regions", region_count},
                                 {"entries", entries}};
      if (found != totals.end()) object["counters"] = ToJson(found->second);
      array.push_back(std::move(object));
      continue;
    }
    const ModelSpec& spec = model.spec;
    const kvmwire::StatsReport counters = found == totals.end() ? kvmwire::StatsReport() : found->second;
    const auto reported = [&](std::uint64_t count) { return found == totals.end() ? "-" : HumanCount(count); };
    table.Add({std::to_string(model.row), Printable(spec.model_id), Printable(spec.revision), ShortFingerprint(model.fingerprint),
               Printable(spec.kv_dtype), Printable(spec.layout), std::to_string(spec.num_layers), std::to_string(spec.num_kv_heads),
               std::to_string(spec.head_size), std::to_string(spec.block_tokens),
               std::to_string(spec.tp_size) + " x " + std::to_string(spec.pp_size), std::to_string(region_count), HumanCount(entries),
               reported(counters.finds()),
               HumanPercent(static_cast<double>(counters.keys_matched()), static_cast<double>(counters.keys_looked_up())),
               reported(counters.blocks_imported())});
  }
  if (common.json) {
    PrintJson({{"models", std::move(array)}});
  } else {
    table.Print(std::cout);
  }
  return kHealthy;
}

}  // namespace kvm::ctl
