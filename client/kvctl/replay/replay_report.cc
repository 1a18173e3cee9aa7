// What a replay prints.
#include <iostream>

#include <boost/json/array.hpp>

#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/replay/replay.h"

namespace kvm::ctl {
namespace {

double Ratio(std::uint64_t part, std::uint64_t whole) { return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole); }

boost::json::object ReportJson(const ReplayOptions& options, const PoolMemory& memory, ReplayReport& report) {
  boost::json::array unmapped;
  for (const std::string& reason : report.unmapped) unmapped.push_back(boost::json::string(Printable(reason)));
  return {{"source", options.name()},
          {"backend", memory.backend()},
          {"devices", DevicesJson(memory.devices)},
          {"workers", options.workers},
          {"pool_blocks", options.pool_blocks},
          {"policy", policy::PolicyName(options.policy)},
          {"host_cache_bytes", options.host_cache_bytes},
          {"host_cache_policy", policy::PolicyName(options.host_cache_policy)},
          {"block_bytes", options.block_bytes},
          {"block_tokens", options.block_tokens},
          {"routing", RoutingName(options.routing)},
          {"in_order", options.in_order},
          {"paced", options.paced},
          {"speed", options.speed},
          {"seed", options.seed},
          {"requests", report.requests},
          {"blocks_total", report.blocks_total},
          {"blocks_hit", report.blocks_hit()},
          {"blocks_local", report.blocks_local},
          {"blocks_imported", report.blocks_imported},
          {"blocks_from_host_cache", report.blocks_from_host_cache},
          {"nodes", options.nodes.size()},
          {"blocks_joined", report.blocks_joined},
          {"blocks_computed", report.blocks_total - report.blocks_hit()},
          {"hit_ratio", Ratio(report.blocks_hit(), report.blocks_total)},
          {"blocks_hit_without_sharing", report.blocks_hit_alone},
          {"hit_ratio_without_sharing", Ratio(report.blocks_hit_alone, report.blocks_total)},
          {"tokens_total", report.tokens_total},
          {"tokens_saved", report.tokens_saved},
          {"mismatched_blocks", report.mismatched_blocks},
          {"failed_imports", report.failed_imports},
          {"failed_import_blocks", report.failed_import_blocks},
          {"flush_failures", report.flush_failures},
          {"unmapped", std::move(unmapped)},
          {"bytes_imported", report.bytes_imported},
          {"evictions", report.evictions},
          {"publishes_refused", report.publishes_refused},
          {"publishes_deferred", report.publishes_deferred},
          {"blocks_offloaded", report.blocks_offloaded},
          {"offloads_dropped", report.offloads_dropped},
          {"offloads_refused", report.offloads_refused},
          {"wait_computing_ms", options.wait_computing_ms},
          {"prefill_takes_time", options.prefill_takes_time},
          {"computing_waits", report.computing_waits},
          {"computing_waits_in_vain", report.computing_waits_in_vain},
          {"late_ms", Percentiles(report.late_ms)},
          {"keys_us", Percentiles(report.keys_us)},
          {"find_us", Percentiles(report.find_us)},
          {"join_us", Percentiles(report.join_us)},
          {"import_us", Percentiles(report.import_us)},
          {"publish_us", Percentiles(report.publish_us)},
          {"flush_us", Percentiles(report.flush_us)},
          {"prefill_us_per_token", options.prefill_us_per_token},
          {"ttft_ms", Percentiles(report.ttft_ms)},
          {"ttft_without_sharing_ms", Percentiles(report.ttft_alone_ms)},
          {"wall_s", report.wall_s},
          {"requests_per_s", report.wall_s > 0 ? static_cast<double>(report.requests) / report.wall_s : 0},
          {"healthy", report.Healthy()}};
}

std::string Us(double microseconds) { return HumanNanoseconds(1e3 * microseconds); }

std::string PaceText(const ReplayOptions& options) {
  if (!options.paced) return "";
  return ", paced" + (options.speed == 1 ? "" : " at " + FormatFixed(options.speed, 2) + " x");
}

void PrintTables(const ReplayOptions& options, const PoolMemory& memory, ReplayReport& report) {
  const auto total = static_cast<double>(report.blocks_total);
  const auto share = [&](std::uint64_t blocks) { return HumanPercent(static_cast<double>(blocks), total); };
  FieldList head;
  head.Add("replayed", HumanCount(report.requests) + " requests of " + options.name() + " over " + std::to_string(options.workers) +
                           " workers, " + std::string(RoutingName(options.routing)) + (options.in_order ? ", in order" : "") +
                           PaceText(options) + ", in " + FormatFixed(report.wall_s, 2) + " s");
  head.Add("pools", HumanCount(options.pool_blocks) + " blocks of " + HumanBytes(options.block_bytes) + " each, " +
                        std::string(policy::PolicyName(options.policy)) + "; " + HumanCount(report.evictions) + " evictions");
  if (options.host_cache_bytes > 0) {
    head.Add("host cache", HumanBytes(options.host_cache_bytes) + ", " + std::string(policy::PolicyName(options.host_cache_policy)) + "; " +
                               HumanCount(report.blocks_offloaded) + " blocks offloaded");
  }
  head.Add("backend", memory.Describe() + (memory.devices.size() > 1 ? "; workers in turn" : ""));
  head.Print(std::cout);
  std::cout << '\n';

  Table blocks({"blocks", ">count", ">share"});
  blocks.Add({"hit", HumanCount(report.blocks_hit()), share(report.blocks_hit())});
  blocks.Add({"  local", HumanCount(report.blocks_local), share(report.blocks_local)});
  blocks.Add({"  imported", HumanCount(report.blocks_imported), share(report.blocks_imported)});
  if (options.host_cache_bytes > 0)
    blocks.Add({"    from the host cache", HumanCount(report.blocks_from_host_cache), share(report.blocks_from_host_cache)});
  if (!options.nodes.empty()) blocks.Add({"    fetched from other nodes", HumanCount(report.blocks_joined), share(report.blocks_joined)});
  blocks.Add({"computed", HumanCount(report.blocks_total - report.blocks_hit()), share(report.blocks_total - report.blocks_hit())});
  blocks.Add({"total", HumanCount(report.blocks_total), share(report.blocks_total)});
  blocks.Add({"hit without sharing", HumanCount(report.blocks_hit_alone), share(report.blocks_hit_alone)});
  blocks.Print(std::cout);
  std::cout << '\n';

  Table times({"step", ">p50", ">p99", ">count"});
  const auto add = [&](const char* name, Samples& samples) {
    if (!samples.empty()) times.Add({name, Us(samples.p50()), Us(samples.p99()), HumanCount(samples.count())});
  };
  if (!report.late_ms.empty())
    times.Add(
        {"sent after it was due", Us(1e3 * report.late_ms.p50()), Us(1e3 * report.late_ms.p99()), HumanCount(report.late_ms.count())});
  add("derive keys", report.keys_us);
  add("find", report.find_us);
  add("join", report.join_us);
  add("import", report.import_us);
  add("publish", report.publish_us);
  add("publish visible", report.flush_us);
  times.Add({"first token, modelled", Us(1e3 * report.ttft_ms.p50()), Us(1e3 * report.ttft_ms.p99()), HumanCount(report.ttft_ms.count())});
  times.Add({"  without sharing", Us(1e3 * report.ttft_alone_ms.p50()), Us(1e3 * report.ttft_alone_ms.p99()),
             HumanCount(report.ttft_alone_ms.count())});
  times.Print(std::cout);
  std::cout << '\n';

  FieldList tail;
  tail.Add("tokens saved", HumanCount(report.tokens_saved) + " of " + HumanCount(report.tokens_total) + " (" +
                               HumanPercent(static_cast<double>(report.tokens_saved), static_cast<double>(report.tokens_total)) + ")");
  tail.Add("mean first token", Us(1e3 * report.ttft_ms.Mean()) + ", without sharing " + Us(1e3 * report.ttft_alone_ms.Mean()) + " (at " +
                                   FormatFixed(options.prefill_us_per_token, 1) + " µs a token)");
  if (options.wait_computing_ms > 0)
    tail.Add("waited for others",
             HumanCount(report.computing_waits) + " times, " + HumanCount(report.computing_waits_in_vain) + " of them in vain");
  tail.Add("bytes moved", HumanBytes(report.bytes_imported));
  tail.Add("failed imports",
           HumanCount(report.failed_imports) + " (" + HumanCount(report.failed_import_blocks) + " blocks, computed instead)");
  tail.Add("mismatched blocks", HumanCount(report.mismatched_blocks));
  if (report.flush_failures > 0) tail.Add("publishes not confirmed", HumanCount(report.flush_failures));
  if (report.publishes_refused > 0) tail.Add("publishes refused", HumanCount(report.publishes_refused));
  if (report.offloads_dropped + report.offloads_refused > 0)
    tail.Add("not offloaded",
             HumanCount(report.offloads_dropped) + " reused before, " + HumanCount(report.offloads_refused) + " without room");
  for (const std::string& reason : report.unmapped) tail.Add("can't import from all", Printable(reason));
  tail.Print(std::cout);
}

}  // namespace

void PrintReplay(const ReplayOptions& options, const PoolMemory& memory, ReplayReport& report, bool json) {
  if (json) {
    PrintJson(ReportJson(options, memory, report));
  } else {
    PrintTables(options, memory, report);
  }
}

}  // namespace kvm::ctl
