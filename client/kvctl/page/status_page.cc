#include "client/kvctl/page/status_page.h"

#include <array>
#include <chrono>
#include <cmath>
#include <ctime>

#include <openssl/evp.h>

#include "client/kvctl/cli/text.h"
#include "client/kvctl/page/page_chart.h"
#include "client/kvctl/page/page_style.h"
#include "client/kvctl/page/page_tables.h"

namespace kvm::ctl {
namespace {

std::string Tile(const std::string& name, const std::string& value) {
  return "<div class=tile><p>" + name + "</p><strong>" + value + "</strong></div>";
}

std::string PerSecond(double count, const Interval& interval) {
  return HumanCount(static_cast<std::uint64_t>(std::llround(count / interval.seconds)));
}

std::string Tiles(const kvmwire::StatusReply& status, const StatusHistory& history) {
  std::uint64_t looked_up = 0, found = 0, entries = 0, max_entries = 0;
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    looked_up += domain.client_totals().keys_looked_up();
    found += domain.client_totals().keys_matched();
    entries += domain.entries();
    max_entries += domain.max_entries();
  }
  const auto share = [](std::uint64_t part, std::uint64_t whole) {
    return HumanPercent(static_cast<double>(part), static_cast<double>(whole));
  };
  std::string tiles = Tile("found since start", share(found, looked_up));
  if (!history.intervals().empty()) {
    const Interval& last = history.intervals().back();
    tiles += Tile("found now", share(last.keys_found, last.keys_looked_up));
    tiles += Tile("looked up", PerSecond(static_cast<double>(last.keys_looked_up), last) + " blocks/s");
    tiles += Tile("imported", HumanBytes(static_cast<std::uint64_t>(static_cast<double>(last.imported_bytes) / last.seconds)) + "/s");
    tiles += Tile("imports that failed", PerSecond(static_cast<double>(last.failed_blocks), last) + " blocks/s");
  }
  tiles += Tile("index", share(entries, max_entries) + " full");
  if (status.has_host_cache())
    tiles += Tile("host cache", HumanBytes(status.host_cache().bytes()) + " of " + HumanBytes(status.host_cache().max_bytes()));
  return "<div class=tiles>" + tiles + "</div>";
}

// UTC, as the log of a machine in a data centre has it.
std::string Clock(StatusHistory::Time time) {
  const std::time_t seconds = std::chrono::system_clock::to_time_t(time);
  std::tm parts{};
  ::gmtime_r(&seconds, &parts);
  std::string text(32, '\0');
  text.resize(std::strftime(text.data(), text.size(), "%F %T UTC", &parts));
  return text;
}

std::string Body(const kvmwire::StatusReply& status, const StatusHistory& history, StatusHistory::Time now, Keys keys) {
  const auto now_s = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::seconds>(now.time_since_epoch()).count());
  const std::uint64_t started_s = status.started_ms() / 1000;
  std::string body = "<header><h1>kvmd " + EscapeHtml(Printable(status.server_version())) + "</h1><p class=good>up " +
                     HumanSeconds(now_s > started_s ? now_s - started_s : 0) + "</p><p>" + HumanCount(status.clients()) + " of " +
                     HumanCount(status.max_clients()) + " connections</p><p id=asof>" + Clock(now) +
                     "</p><p><a href=\"/metrics\">metrics</a></p></header>";
  if (status.lists_cut()) body += "<p class=bad>kvmd's answer was too large for one message: the lists below are not complete.</p>";
  body += Tiles(status, history);
  body += "<div class=columns><section><h2>Blocks found, of those that were looked up</h2>" + HitChart(history.intervals()) +
          "<h2>Lookups that ended early, by reason</h2>" + MissChart(history.intervals()) + MissTable(status) + "</section>";
  body += DeviceSection(status) + WorkerSection(status) + LastMissSection(status, now, keys) + HotSection(status, keys) +
          HostCacheSection(status) + EventSection(history, now) + "</div>";
  return body;
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string escaped;
  escaped.reserve(text.size());
  for (const char each : text) {
    switch (each) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      case '\'': escaped += "&#39;"; break;
      default: escaped += each;
    }
  }
  return escaped;
}

std::string StatusPagePolicy() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned size = 0;
  if (EVP_Digest(kPageScript.data(), kPageScript.size(), digest.data(), &size, EVP_sha256(), nullptr) != 1) size = 0;
  std::array<unsigned char, 2 * EVP_MAX_MD_SIZE> base64{};
  const int length = EVP_EncodeBlock(base64.data(), digest.data(), static_cast<int>(size));
  const std::string hash(base64.begin(), base64.begin() + length);
  return "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-" + hash +
         "'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
}

std::string StatusPage(const kvmwire::StatusReply* status, const std::string& why, const StatusHistory& history, StatusHistory::Time now,
                       Keys keys) {
  std::string body;
  if (status != nullptr) {
    body = Body(*status, history, now, keys);
  } else {
    body = "<header><h1>kvmd</h1><p class=bad>does not answer</p><p id=asof>" + Clock(now) +
           "</p><p><a href=\"/metrics\">metrics</a></p></header><section><p>" + EscapeHtml(why) + "</p></section>" +
           EventSection(history, now);
  }
  return "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\">"
         "<title>kvmd</title><style>" +
         std::string(kPageStyle) + "</style></head><body><main>" + body + "</main><script>" + std::string(kPageScript) +
         "</script></body></html>\n";
}

}  // namespace kvm::ctl
