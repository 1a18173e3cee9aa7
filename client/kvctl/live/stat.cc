// kvctl stat.
#include <chrono>
#include <iomanip>
#include <iostream>

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "client/kvctl/cli/clock.h"
#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/live/live.h"
#include "client/kvctl/live/status_feed.h"
#include "client/kvctl/process/interrupt.h"

namespace kvm::ctl {
namespace {

constexpr std::uint64_t kLinesOfATitle = 20;

boost::json::object LineJson(const Activity& activity) {
  const Rates& rates = activity.rates;
  return {{"time_ms", UnixTimeMs()},
          {"clients", activity.clients},
          {"blocks", activity.blocks},
          {"lookups_per_s", rates.lookups},
          {"keys_looked_up_per_s", rates.keys_looked_up},
          {"keys_found_per_s", rates.keys_found},
          {"imported_blocks_per_s", rates.imported_blocks},
          {"imported_bytes_per_s", rates.imported_bytes},
          {"failed_blocks_per_s", rates.failed_blocks},
          {"host_cache_blocks_per_s", rates.host_cache_blocks},
          {"published_blocks_per_s", rates.published_blocks},
          {"evicted_blocks_per_s", rates.evicted_blocks},
          {"refused_blocks_per_s", rates.refused_blocks}};
}

// Columns of fixed width, so that lines of different times stand below each other.
void PrintTitle() { std::cout << " clients    blocks   keys/s  found  imports/s  MB/s in  failed/s  cached/s  publ/s  evict/s\n"; }

void PrintLine(const Activity& activity) {
  const Rates& rates = activity.rates;
  const auto cell = [](int width, const std::string& text) { std::cout << std::setw(width) << text; };
  const auto number = [&](int width, double value) { cell(width, FormatFixed(value, 0)); };
  const double found = rates.keys_looked_up > 0 ? 100 * rates.keys_found / rates.keys_looked_up : 0;
  cell(8, std::to_string(activity.clients));
  cell(10, std::to_string(activity.blocks));
  number(9, rates.keys_looked_up);
  cell(7, rates.keys_looked_up > 0 ? FormatFixed(found, 0) + "%" : "-");
  number(11, rates.imported_blocks);
  cell(9, FormatFixed(rates.imported_bytes / 1e6, 1));
  number(10, rates.failed_blocks);
  number(10, rates.host_cache_blocks);
  number(8, rates.published_blocks);
  number(9, rates.evicted_blocks);
  std::cout << '\n';
}

}  // namespace

int RunStat(const CommonOptions& common, const LiveOptions& options) {
  StatusFeed feed(common, options.interval_s);
  if (Status begun = feed.Begin(); !begun) return Fail(begun.error());
  CatchInterrupts();
  for (std::uint64_t line = 0; (options.count == 0 || line < options.count) && std::cout.good() && feed.Wait(); ++line) {
    const Result<Activity> activity = feed.Next();
    if (!activity) {
      std::cerr << "kvctl: " << Printable(activity.error().ToString()) << std::endl;
      continue;
    }
    if (common.json) {
      std::cout << HarmlessJson(boost::json::serialize(LineJson(*activity))) << '\n';
    } else {
      if (line % kLinesOfATitle == 0) PrintTitle();
      PrintLine(*activity);
    }
    std::cout << std::flush;
  }
  return Interrupted() ? kInterrupted : kHealthy;
}

}  // namespace kvm::ctl
