// kvctl explain --last: why the last misses of the workers were misses.
//
// Each worker keeps its last few and sends them with its counters. A key is all that is known of a
// prompt then; where it is of this user's domain, the registry says whether the block is there now.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>
#include <map>
#include <optional>
#include <span>
#include <string_view>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/miss_reasons.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/lookup.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

struct Explained {
  const kvmwire::ClientStatus* worker;
  const kvmwire::RecentMiss* miss;
  std::optional<BlockKey> key;         // of the first block that was not found
  std::optional<std::size_t> entries;  // of that key, now; empty: of another domain
};

std::optional<BlockKey> KeyOf(const kvmwire::RecentMiss& miss) {
  BlockKey key;
  if (miss.key().size() != sizeof(key)) return std::nullopt;
  std::memcpy(&key, miss.key().data(), sizeof(key));
  return key;
}

bool Named(const kvmwire::ClientStatus& client, const std::string& worker) {
  return worker.empty() || client.name() == worker || std::to_string(client.pid()) == worker;
}

// The newest first.
std::vector<Explained> ExplainAll(const Observer& observer, const kvmwire::StatusReply& status, const std::string& worker) {
  std::vector<Explained> all;
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    if (!Named(client, worker)) continue;
    // A worker's own are in order, also those of one millisecond.
    const auto& misses = client.stats().recent_misses();
    for (auto miss = misses.rbegin(); miss != misses.rend(); ++miss) {
      Explained explained{&client, &*miss, KeyOf(*miss), std::nullopt};
      if (explained.key && client.domain() == observer.hello().domain())
        explained.entries = LookUp(observer.registry(), std::span(&*explained.key, 1)).front().entries.size();
      all.push_back(explained);
    }
  }
  std::stable_sort(all.begin(), all.end(), [](const Explained& a, const Explained& b) { return a.miss->at_ms() > b.miss->at_ms(); });
  return all;
}

std::string Now(const Explained& explained) {
  if (!explained.entries) return "-";
  return *explained.entries == 0 ? "not published" : "published";
}

std::string Ago(std::uint64_t at_ms) {
  const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
  const auto now_ms = static_cast<std::uint64_t>(now);
  return HumanSeconds((now_ms > at_ms ? now_ms - at_ms : 0) / 1000);
}

void PrintText(const std::vector<Explained>& all) {
  Table table({">ago", "worker", ">pid", ">found", ">of", ">times", "reason", "the block is now", "key of the first block not found"});
  std::map<std::string_view, MissReason> reasons;
  bool too_late = false;
  for (const Explained& each : all) {
    const kvmwire::RecentMiss& miss = *each.miss;
    table.Add({Ago(miss.at_ms()), Printable(each.worker->name()), std::to_string(each.worker->pid()), HumanCount(miss.found()),
               HumanCount(miss.keys()), HumanCount(miss.times()), std::string(ReasonOf(miss).name), Now(each),
               each.key ? each.key->ToHex() : "-"});
    reasons.emplace(ReasonOf(miss).name, ReasonOf(miss));
    too_late |= miss.reason() == kvmwire::MISS_ABSENT && each.entries.value_or(0) > 0;
  }
  table.Print(std::cout);
  for (const auto& [name, reason] : reasons) std::cout << '\n' << name << ": " << reason.meaning << "; " << reason.advice << '\n';
  if (too_late) std::cout << "\nBlocks that were absent and are published now were computed since, too late for these requests\n";
}

boost::json::object Json(const std::vector<Explained>& all, bool lists_cut) {
  boost::json::array misses;
  for (const Explained& each : all) {
    misses.push_back({{"worker", Printable(each.worker->name())},
                      {"pid", each.worker->pid()},
                      {"domain", Printable(each.worker->domain())},
                      {"reason", std::string(ReasonOf(*each.miss).name)},
                      {"at_ms", each.miss->at_ms()},
                      {"times", each.miss->times()},
                      {"keys", each.miss->keys()},
                      {"found", each.miss->found()},
                      {"key", each.key ? boost::json::value(each.key->ToHex()) : boost::json::value(nullptr)},
                      {"published_now", each.entries ? boost::json::value(*each.entries > 0) : boost::json::value(nullptr)}});
  }
  return {{"misses", std::move(misses)}, {"lists_cut", lists_cut}};
}

}  // namespace

int RunExplainLast(const CommonOptions& common, const ExplainLastOptions& options) {
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  kvmwire::StatusQuery query;
  query.set_clients(true);
  query.set_details(true);
  const Result<kvmwire::StatusReply> status = observer->Query(query);
  if (!status) return Fail(status.error());
  PrintCutListNote(*status);
  const auto& clients = status->client_list();
  if (std::none_of(clients.begin(), clients.end(), [&](const auto& client) { return Named(client, options.worker); }))
    return Fail(MakeError(Errc::kNotFound, "explain: no worker " + Printable(options.worker) + " is connected"));
  const std::vector<Explained> all = ExplainAll(*observer, *status, options.worker);
  if (common.json) {
    PrintJson(Json(all, status->lists_cut()));
  } else if (all.empty()) {
    std::cout << "no lookup has ended before its last block\n";
  } else {
    PrintText(all);
  }
  return kHealthy;
}

}  // namespace kvm::ctl
