#include "client/kvctl/page/page_tables.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "client/kvctl/cli/registry_tables.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/page/status_page.h"

namespace kvm::ctl {
namespace {

constexpr std::size_t kMostRows = 50;   // of one table
constexpr std::size_t kKeyDigits = 12;  // of a key; kvctl hot has all

// Columns whose title begins with '>' are numbers, with '-' text that may wrap; '~' before that:
// left out where the page is narrow.
class HtmlTable {
 public:
  explicit HtmlTable(const std::vector<std::string>& titles) {
    html_ = "<div class=scroll><table><tr>";
    for (std::string title : titles) {
      std::string kind;
      if (title[0] == '~') kind = "wide ", title.erase(0, 1);
      if (title[0] == '>') kind += "n", title.erase(0, 1);
      if (title[0] == '-') kind += "t", title.erase(0, 1);
      kinds_.push_back(kind.empty() ? "" : " class=\"" + kind + "\"");
      html_ += "<th" + kinds_.back() + ">" + EscapeHtml(title) + "</th>";
    }
    html_ += "</tr>";
  }
  // Cells are HTML: what clients chose has been escaped.
  void Add(const std::vector<std::string>& cells) {
    if (++rows_ > kMostRows) return;
    html_ += "<tr>";
    for (std::size_t i = 0; i < cells.size(); ++i) html_ += "<td" + kinds_[i] + ">" + cells[i] + "</td>";
    html_ += "</tr>";
  }
  std::string Html() const {
    const std::string more = rows_ > kMostRows ? "<p class=note>" + HumanCount(rows_ - kMostRows) + " more rows are not shown</p>" : "";
    return html_ + "</table></div>" + more;
  }
  bool empty() const noexcept { return rows_ == 0; }

 private:
  std::vector<std::string> kinds_;
  std::string html_;
  std::size_t rows_ = 0;
};

std::string Section(const std::string& title, const std::string& body) { return "<section><h2>" + title + "</h2>" + body + "</section>"; }
std::string Nothing(const std::string& text) { return "<p class=none>" + text + "</p>"; }
std::string Text(const std::string& of_client) { return EscapeHtml(Printable(of_client)); }

// "host", "GPU-8f7a12b3"
std::string ShortDevice(const DeviceUuid& device) { return DeviceName(device).substr(0, 12); }

std::string ShortKey(const std::string& bytes, Keys keys) {
  BlockKey key;
  if (keys == Keys::kHidden || bytes.size() != sizeof(key)) return "-";
  std::memcpy(&key, bytes.data(), sizeof(key));
  return "<code>" + key.ToHex().substr(0, kKeyDigits) + "…</code>";
}

std::string Ago(StatusHistory::Time now, StatusHistory::Time then) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(now - then).count();
  return HumanSeconds(static_cast<std::uint64_t>(std::max<std::int64_t>(seconds, 0)));
}

struct Pools {
  std::uint64_t bytes = 0, blocks = 0, entries = 0, regions = 0;
};

std::string Traffic(const kvmwire::StatusReply& status) {
  std::map<std::pair<DeviceUuid, DeviceUuid>, std::pair<std::uint64_t, std::uint64_t>> sums;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    for (const kvmwire::DeviceTraffic& pair : domain.client_totals().traffic()) {
      auto& [blocks, bytes] = sums[{DeviceOf(pair.from_device()), DeviceOf(pair.to_device())}];
      blocks += pair.blocks();
      bytes += pair.bytes();
    }
  }
  HtmlTable table({"imported from", "to", ">blocks", ">bytes"});
  for (const auto& [pair, sum] : sums)
    table.Add({ShortDevice(pair.first), ShortDevice(pair.second), HumanCount(sum.first), HumanBytes(sum.second)});
  return table.empty() ? Nothing("Nothing has been imported yet.") : table.Html();
}

}  // namespace

std::string DeviceSection(const kvmwire::StatusReply& status) {
  std::map<DeviceUuid, std::map<std::string, Pools>> devices;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    for (const kvmwire::MemoryGroup& group : domain.memory()) {
      const char* owner = group.host_cache() ? "host cache" : group.orphan() ? "dead workers" : "workers";
      Pools& pools = devices[DeviceOf(group.device_uuid())][owner];
      pools.bytes += group.bytes();
      pools.blocks += group.blocks();
      pools.entries += group.entries();
      pools.regions += group.regions();
    }
  }
  std::string cards;
  for (const auto& [device, owners] : devices) {
    cards += "<div class=device><h3>" + EscapeHtml(device == kHostMemory ? "host memory" : DeviceName(device)) + "</h3>";
    for (const auto& [owner, pools] : owners) {
      const double share =
          pools.blocks == 0 ? 0 : static_cast<double>(std::min(pools.entries, pools.blocks)) / static_cast<double>(pools.blocks);
      cards += "<p>" + owner + ": " + HumanBytes(pools.bytes) + " in " + HumanCount(pools.regions) +
               (pools.regions == 1 ? " region" : " regions") + ", " + HumanPercent(share, 1) +
               " published</p><div class=fill><i style=\"width:" + FormatFixed(100 * share, 1) + "%\"></i></div>";
    }
    cards += "</div>";
  }
  const std::string map = cards.empty() ? Nothing("No worker has registered memory.") : "<div class=devices>" + cards + "</div>";
  return Section("Memory of this node, and traffic", map + Traffic(status));
}

std::string WorkerSection(const kvmwire::StatusReply& status) {
  HtmlTable table({"worker", "~>pid", "~domain", ">published", ">found", ">imported", "~>bytes in", "~>failed", "~>host cache"});
  std::vector<const kvmwire::ClientStatus*> workers;
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    if (client.role() == kvmwire::WORKER) workers.push_back(&client);
  }
  std::sort(workers.begin(), workers.end(),
            [](const auto* a, const auto* b) { return a->stats().keys_looked_up() > b->stats().keys_looked_up(); });
  for (const kvmwire::ClientStatus* client : workers) {
    const kvmwire::StatsReport& stats = client->stats();
    table.Add({Text(client->name()), std::to_string(client->pid()), Text(client->domain()), HumanCount(client->entries()),
               HumanPercent(static_cast<double>(stats.keys_matched()), static_cast<double>(stats.keys_looked_up())),
               HumanCount(stats.blocks_imported()), HumanBytes(stats.bytes_imported()), HumanCount(stats.blocks_failed()),
               HumanBytes(client->host_cache_bytes())});
  }
  return Section("Workers", table.empty() ? Nothing("No worker is connected.") : table.Html());
}

std::string HotSection(const kvmwire::StatusReply& status, Keys keys) {
  HtmlTable table({">uses", ">blocks", "-model", "~domain", "last block"});
  std::vector<std::pair<const kvmwire::DomainStatus*, const kvmwire::HotPrefix*>> all;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    for (const kvmwire::HotPrefix& hot : domain.hot()) all.emplace_back(&domain, &hot);
  }
  // Of equal ones the order stays the same from one page to the next.
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) {
    return a.second->uses() != b.second->uses() ? a.second->uses() > b.second->uses() : a.second->key() < b.second->key();
  });
  for (const auto& [domain, hot] : all) {
    table.Add({HumanCount(hot->uses()), HumanCount(std::uint64_t{hot->depth()} + 1), hot->model_id().empty() ? "-" : Text(hot->model_id()),
               Text(domain->name()), ShortKey(hot->key(), keys)});
  }
  return Section("Hottest prefixes", table.empty() ? Nothing("No import was reported lately.") : table.Html());
}

std::string LastMissSection(const kvmwire::StatusReply& status, StatusHistory::Time now, Keys keys) {
  HtmlTable table({">ago", "worker", ">found", ">of", "~>times", "-reason", "~first block not found"});
  struct Missed {
    const kvmwire::ClientStatus* client;
    const kvmwire::RecentMiss* miss;
    std::size_t place;  // a worker's own are in order, also those of one millisecond
  };
  std::vector<Missed> all;
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    const auto& misses = client.stats().recent_misses();
    for (auto miss = misses.rbegin(); miss != misses.rend(); ++miss) all.push_back({&client, &*miss, all.size()});
  }
  std::sort(all.begin(), all.end(), [](const Missed& a, const Missed& b) {
    return a.miss->at_ms() != b.miss->at_ms() ? a.miss->at_ms() > b.miss->at_ms() : a.place < b.place;
  });
  constexpr std::size_t kMostMisses = 12;
  if (all.size() > kMostMisses) all.resize(kMostMisses);
  for (const auto& [client, miss, place] : all) {
    // A client says when: its time may be any number.
    const auto now_ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count();
    const std::uint64_t seconds =
        static_cast<std::uint64_t>(now_ms) > miss->at_ms() ? (static_cast<std::uint64_t>(now_ms) - miss->at_ms()) / 1000 : 0;
    table.Add({HumanSeconds(seconds), Text(client->name()), HumanCount(miss->found()), HumanCount(miss->keys()), HumanCount(miss->times()),
               std::string(ReasonOf(*miss).meaning), ShortKey(miss->key(), keys)});
  }
  return Section("Last misses", table.empty() ? Nothing("No lookup has ended before its last block.") : table.Html());
}

std::string HostCacheSection(const kvmwire::StatusReply& status) {
  if (!status.has_host_cache()) return Section("Host cache", Nothing("This kvmd has none (--host-cache)."));
  const kvmwire::HostCacheStatus& all = status.host_cache();
  HtmlTable table({"domain", ">blocks", ">in use", ">hits", "~>stored", ">evicted", "~>refused"});
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    const kvmwire::HostCacheDomain& cache = domain.host_cache();
    table.Add({Text(domain.name()), HumanCount(cache.blocks()), HumanBytes(cache.used_bytes()), HumanCount(cache.hits()),
               HumanCount(cache.stored()), HumanCount(cache.evicted()), HumanCount(cache.refused())});
  }
  return Section("Host cache", "<p>" + HumanBytes(all.bytes()) + " of " + HumanBytes(all.max_bytes()) + ", " + Text(all.policy()) +
                                   ", admission " + Text(all.admission()) + "</p>" + table.Html());
}

std::string MissTable(const kvmwire::StatusReply& status) {
  std::array<std::uint64_t, kMissReasons.size()> counts{};
  double sum = 0;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += (domain.client_totals().*kMissReasons[i].count)();
  }
  for (const std::uint64_t count : counts) sum += static_cast<double>(count);
  HtmlTable table({"-misses since kvmd's start, by reason", ">lookups", ">share"});
  for (std::size_t i = 0; i < counts.size(); ++i) {
    table.Add({"<span class=\"key m" + std::to_string(i) + "\"></span>" + std::string(kMissReasons[i].meaning), HumanCount(counts[i]),
               HumanPercent(static_cast<double>(counts[i]), sum)});
  }
  return table.Html();
}

std::string EventSection(const StatusHistory& history, StatusHistory::Time now) {
  HtmlTable table({">ago", "-what"});
  for (const Event& event : history.events()) table.Add({Ago(now, event.at), EscapeHtml(event.text)});
  return Section("Recent events", (table.empty() ? Nothing("None since the exporter began to look.") : table.Html()) +
                                      "<p class=note>As seen between two looks; journalctl -u kvmd has all.</p>");
}

}  // namespace kvm::ctl
