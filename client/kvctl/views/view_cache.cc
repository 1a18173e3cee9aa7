// kvctl cache: who fills the host cache.
#include <algorithm>
#include <iostream>
#include <map>
#include <optional>
#include <tuple>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

using By = CacheOptions::By;

// What one line is about; what it is not about is empty.
struct Filler {
  std::string domain;
  std::optional<std::uint32_t> uid;
  std::string fingerprint;  // bytes
  std::uint64_t client_id = 0;
  std::uint32_t pid = 0;
  friend auto operator<=>(const Filler&, const Filler&) = default;
};

struct CacheLine {
  Filler filler;
  std::string model, worker;  // empty: none
  std::uint64_t slabs = 0, bytes = 0, blocks = 0, used_bytes = 0;
};

Filler FillerOf(const std::string& domain, const kvmwire::HostCacheShare& share, By by) {
  Filler filler;
  filler.domain = domain;
  if (by == By::kWorker || by == By::kUser) filler.uid = share.uid();
  if (by == By::kWorker || by == By::kModel) filler.fingerprint = share.fingerprint();
  if (by == By::kWorker) {
    filler.client_id = share.client_id();
    filler.pid = share.pid();
  }
  return filler;
}

// The most memory first.
std::vector<CacheLine> LinesOf(const kvmwire::StatusReply& status, By by) {
  std::map<std::uint64_t, std::string> names;
  for (const kvmwire::ClientStatus& client : status.client_list()) names[client.client_id()] = Printable(client.name());
  std::map<Filler, CacheLine> lines;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    for (const kvmwire::HostCacheShare& share : domain.host_cache().shares()) {
      Filler filler = FillerOf(domain.name(), share, by);
      CacheLine& line = lines[filler];
      if (!filler.fingerprint.empty()) line.model = Printable(share.model_id());
      if (const auto name = names.find(filler.client_id); name != names.end()) line.worker = name->second;
      line.filler = std::move(filler);
      line.slabs += share.slabs();
      line.bytes += share.bytes();
      line.blocks += share.blocks();
      line.used_bytes += share.used_bytes();
    }
  }
  std::vector<CacheLine> sorted;
  for (auto& [filler, line] : lines) sorted.push_back(std::move(line));
  std::stable_sort(sorted.begin(), sorted.end(), [](const CacheLine& a, const CacheLine& b) { return a.bytes > b.bytes; });
  return sorted;
}

boost::json::object CacheLineJson(const CacheLine& line, By by) {
  boost::json::object json{{"domain", Printable(line.filler.domain)}};
  if (line.filler.uid) json["uid"] = *line.filler.uid;
  if (by == By::kWorker) {
    json["worker"] = line.worker.empty() ? boost::json::value(nullptr) : boost::json::value(line.worker);
    json["client_id"] = line.filler.client_id;
    json["pid"] = line.filler.pid;
  }
  if (by == By::kWorker || by == By::kModel) json["model_id"] = line.model;
  json["slabs"] = line.slabs;
  json["bytes"] = line.bytes;
  json["blocks"] = line.blocks;
  json["used_bytes"] = line.used_bytes;
  return json;
}

void PrintLines(const std::vector<CacheLine>& lines, const kvmwire::HostCacheStatus& cache, By by) {
  std::vector<std::string> titles{"domain"};
  if (by == By::kWorker || by == By::kUser) titles.emplace_back(">uid");
  if (by == By::kWorker) titles.insert(titles.end(), {"worker", ">pid"});
  if (by == By::kWorker || by == By::kModel) titles.emplace_back("model");
  titles.insert(titles.end(), {">slabs", ">memory", ">of the cache", ">blocks", ">in use"});
  Table table(std::move(titles));
  for (const CacheLine& line : lines) {
    std::vector<std::string> cells{Printable(line.filler.domain)};
    if (line.filler.uid) cells.push_back(std::to_string(*line.filler.uid));
    if (by == By::kWorker) {
      cells.push_back(line.worker.empty() ? "-" : line.worker);
      cells.push_back(line.filler.pid == 0 ? "-" : std::to_string(line.filler.pid));
    }
    if (by == By::kWorker || by == By::kModel) cells.push_back(line.model);
    cells.insert(cells.end(), {HumanCount(line.slabs), HumanBytes(line.bytes),
                               HumanPercent(static_cast<double>(line.bytes), static_cast<double>(cache.max_bytes())),
                               HumanCount(line.blocks), HumanBytes(line.used_bytes)});
    table.Add(std::move(cells));
  }
  table.Print(std::cout);
}

}  // namespace

int RunCache(const CommonOptions& common, const CacheOptions& options) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  kvmwire::StatusQuery query;
  query.set_host_cache(true);
  query.set_clients(true);  // for the workers' names
  const Result<kvmwire::StatusReply> status = observer->Query(query);
  if (!status) return Fail(status.error());
  PrintCutListNote(*status);
  const std::vector<CacheLine> lines = LinesOf(*status, options.by);
  const kvmwire::HostCacheStatus& cache = status->host_cache();
  if (common.json) {
    boost::json::array fillers;
    for (const CacheLine& line : lines) fillers.push_back(CacheLineJson(line, options.by));
    PrintJson(
        {{"max_bytes", cache.max_bytes()}, {"bytes", cache.bytes()}, {"fillers", std::move(fillers)}, {"lists_cut", status->lists_cut()}});
    return kHealthy;
  }
  if (!status->has_host_cache()) {
    std::cout << "this kvmd has no host cache (--host-cache)\n";
    return kHealthy;
  }
  if (!lines.empty()) PrintLines(lines, cache, options.by);
  std::cout << (lines.empty() ? "" : "\n") << HumanBytes(cache.bytes()) << " of " << HumanBytes(cache.max_bytes()) << " are allocated\n";
  return kHealthy;
}

}  // namespace kvm::ctl
