#include "client/kvctl/live/top_page.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <sstream>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

std::size_t CharactersOf(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

// "1,234", with a digit behind the point for what would be 0 otherwise.
std::string Short(double rate) {
  if (rate > 0 && rate < 10) return FormatFixed(rate, 1);
  return rate < 100'000 ? HumanCount(static_cast<std::uint64_t>(std::llround(rate))) : FormatFixed(rate / 1000, 0) + "k";
}

std::string BytesRate(double bytes) { return HumanBytes(static_cast<std::uint64_t>(bytes)) + "/s"; }

std::string Cell(const std::string& text, std::size_t width, bool right) {
  const std::string fit = Fit(text, width);
  const std::string blank(width - CharactersOf(fit), ' ');
  return right ? blank + fit : fit + blank;
}

struct Column {
  const char* title;
  std::size_t width;
  bool right;
};
// With a blank between them: kPageColumns.
constexpr Column kColumns[] = {{"WORKER", 16, false}, {"PID", 7, true},   {"DOMAIN", 9, false},   {"BLOCKS", 9, true},
                               {"KEYS/s", 7, true},   {"FOUND", 7, true}, {"BYTES IN", 11, true}, {"FAIL/s", 7, true}};

std::string Row(const std::vector<std::string>& cells) {
  std::string row;
  for (std::size_t i = 0; i < std::size(kColumns); ++i) row += (i == 0 ? "" : " ") + Cell(cells[i], kColumns[i].width, kColumns[i].right);
  return row.substr(0, row.find_last_not_of(' ') + 1);
}

std::uint64_t UptimeSeconds(const kvmwire::StatusReply& status) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto now_ms = static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count());
  return now_ms > status.started_ms() ? (now_ms - status.started_ms()) / 1000 : 0;
}

}  // namespace

std::string Fit(const std::string& text, std::size_t columns) {
  if (CharactersOf(text) <= columns) return text;
  std::size_t characters = 0, end = 0;
  while (end < text.size()) {
    if ((text[end] & 0xC0) != 0x80 && ++characters > columns - 1) break;
    ++end;
  }
  return text.substr(0, end) + "~";
}

std::vector<std::string> TopPage(const kvmwire::StatusReply& status, const Activity& activity, const std::string& time,
                                 std::size_t max_lines) {
  const Rates& rates = activity.rates;
  const auto percent = [](double part, double whole) { return HumanPercent(part, whole); };
  std::vector<std::string> lines{
      "kvmd " + status.server_version() + ", up " + HumanSeconds(UptimeSeconds(status)) + ", " + HumanCount(activity.clients) +
          " connections, " + time,
      "lookups  " + Short(rates.lookups) + "/s, " + Short(rates.keys_looked_up) + " keys/s, found " +
          percent(rates.keys_found, rates.keys_looked_up),
      "imports  " + Short(rates.imported_blocks) + " blocks/s, " + BytesRate(rates.imported_bytes) + ", from the host cache " +
          Short(rates.host_cache_blocks) + "/s, failed " + Short(rates.failed_blocks) + "/s",
      "index    " + HumanCount(activity.blocks) + " blocks, " +
          percent(static_cast<double>(activity.blocks), static_cast<double>(activity.max_blocks)) + " full, published " +
          Short(rates.published_blocks) + "/s, evicted " + Short(rates.evicted_blocks) + "/s, refused " + Short(rates.refused_blocks) +
          "/s",
      "memory   host cache " +
          (status.has_host_cache() ? HumanBytes(activity.host_cache_bytes) + " of " + HumanBytes(activity.max_host_cache_bytes) : "none") +
          ", of dead workers " + HumanBytes(activity.orphan_bytes),
      ""};
  std::vector<std::string> titles;
  for (const Column& column : kColumns) titles.emplace_back(column.title);
  lines.push_back(Row(titles));
  for (const ClientActivity& worker : activity.workers) {
    lines.push_back(Row({worker.name, std::to_string(worker.pid), worker.domain, HumanCount(worker.blocks),
                         Short(worker.rates.keys_looked_up), percent(worker.rates.keys_found, worker.rates.keys_looked_up),
                         BytesRate(worker.rates.imported_bytes), Short(worker.rates.failed_blocks)}));
  }
  if (max_lines != 0 && lines.size() > max_lines) {
    const std::size_t left_out = lines.size() - max_lines + 1;
    lines.resize(max_lines - 1);
    lines.push_back("… " + std::to_string(left_out) + " more");
  }
  for (std::string& line : lines) line = Fit(line, kPageColumns);
  return lines;
}

}  // namespace kvm::ctl
