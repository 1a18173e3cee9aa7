#include "client/kvctl/live/activity.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

// A counter that begins anew counts from 0.
double Rate(std::uint64_t before, std::uint64_t now, double seconds) {
  return static_cast<double>(now >= before ? now - before : now) / seconds;
}

Rates RatesOf(const kvmwire::StatsReport& before, const kvmwire::StatsReport& now, double seconds) {
  return {.lookups = Rate(before.finds(), now.finds(), seconds),
          .keys_looked_up = Rate(before.keys_looked_up(), now.keys_looked_up(), seconds),
          .keys_found = Rate(before.keys_matched(), now.keys_matched(), seconds),
          .imported_blocks = Rate(before.blocks_imported(), now.blocks_imported(), seconds),
          .imported_bytes = Rate(before.bytes_imported(), now.bytes_imported(), seconds),
          .failed_blocks = Rate(before.blocks_failed(), now.blocks_failed(), seconds),
          .host_cache_blocks = Rate(before.blocks_from_host_cache(), now.blocks_from_host_cache(), seconds),
          .published_blocks = Rate(before.blocks_published(), now.blocks_published(), seconds)};
}

void Add(Rates& sum, const Rates& more) {
  sum.lookups += more.lookups;
  sum.keys_looked_up += more.keys_looked_up;
  sum.keys_found += more.keys_found;
  sum.imported_blocks += more.imported_blocks;
  sum.imported_bytes += more.imported_bytes;
  sum.failed_blocks += more.failed_blocks;
  sum.host_cache_blocks += more.host_cache_blocks;
  sum.published_blocks += more.published_blocks;
  sum.evicted_blocks += more.evicted_blocks;
  sum.refused_blocks += more.refused_blocks;
}

void AddDomains(Activity& activity, const kvmwire::StatusReply& before, const kvmwire::StatusReply& now, double seconds) {
  // An epoch names a domain's registry, whose counters begin with it.
  std::map<std::uint64_t, const kvmwire::DomainStatus*> earlier;
  for (const kvmwire::DomainStatus& domain : before.domains()) earlier[domain.epoch()] = &domain;
  for (const kvmwire::DomainStatus& domain : now.domains()) {
    activity.blocks += domain.entries();
    activity.max_blocks += domain.max_entries();
    activity.orphan_bytes += domain.orphan_bytes();
    const auto found = earlier.find(domain.epoch());
    const kvmwire::DomainStatus& was = found == earlier.end() ? kvmwire::DomainStatus::default_instance() : *found->second;
    Rates rates = RatesOf(was.client_totals(), domain.client_totals(), seconds);
    rates.evicted_blocks = Rate(was.counters().evicted(), domain.counters().evicted(), seconds);
    rates.refused_blocks = Rate(was.counters().refused_full(), domain.counters().refused_full(), seconds);
    Add(activity.rates, rates);
  }
}

}  // namespace

Activity ActivityBetween(const kvmwire::StatusReply& before, const kvmwire::StatusReply& now, double seconds) {
  Activity activity;
  activity.clients = now.clients();
  activity.host_cache_bytes = now.host_cache().bytes();
  activity.max_host_cache_bytes = now.host_cache().max_bytes();
  AddDomains(activity, before, now, seconds);
  std::map<std::uint64_t, const kvmwire::StatsReport*> earlier;
  const bool same_kvmd = before.started_ms() == now.started_ms();
  for (const kvmwire::ClientStatus& client : before.client_list()) earlier[client.client_id()] = &client.stats();
  for (const kvmwire::ClientStatus& client : now.client_list()) {
    if (client.role() != kvmwire::WORKER) continue;
    const auto found = earlier.find(client.client_id());
    const bool known = same_kvmd && found != earlier.end();
    activity.workers.push_back({.name = Printable(client.name()),
                                .domain = Printable(client.domain()),
                                .pid = client.pid(),
                                .blocks = client.entries(),
                                // What it did before it was seen first is not of this time.
                                .rates = RatesOf(known ? *found->second : client.stats(), client.stats(), seconds)});
  }
  const auto busier = [](const ClientActivity& worker) {
    return std::tuple(-worker.rates.imported_bytes, -worker.rates.keys_looked_up, -worker.rates.published_blocks, worker.name, worker.pid);
  };
  std::sort(activity.workers.begin(), activity.workers.end(),
            [&](const ClientActivity& one, const ClientActivity& other) { return busier(one) < busier(other); });
  return activity;
}

}  // namespace kvm::ctl
