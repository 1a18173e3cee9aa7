// Command line of the views: status, clients, regions, models, leases, drain, hot, cache, verify,
// topo, ls, find, explain; and of reclaim and evict.
#include <CLI/CLI.hpp>

#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "client/kvctl/cli/choice.h"
#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/views.h"

namespace kvm::ctl {
namespace {

const std::map<std::string, CacheOptions::By> kCacheLines{{"worker", CacheOptions::By::kWorker},
                                                          {"user", CacheOptions::By::kUser},
                                                          {"model", CacheOptions::By::kModel},
                                                          {"domain", CacheOptions::By::kDomain}};

void AddSimple(CLI::App& app, const std::string& name, const std::string& help, const CommonOptions& common, Action& action,
               int (*run)(const CommonOptions&)) {
  app.add_subcommand(name, help)->callback([&common, &action, run] { action = [&common, run] { return run(common); }; });
}

}  // namespace

void AddKeyOptions(CLI::App& command, KeyQueryOptions& query) {
  command.add_option("--keys", query.keys, "Block keys of one chain, in order: HEX,HEX,… (32 digits each)");
  command.add_option("--tokens", query.tokens, "Token ids of a prompt: 1,2,3,…");
  command.add_option("--tokens-file", query.tokens_file, "File with token ids, separated by commas or space, or a JSON array; - for stdin");
  command.add_option("--model-spec", query.model_spec_file, "File with the model's spec: a JSON object, or name=value lines");
  command.add_option("--model", query.model, "A declared model: model_id, row or fingerprint");
  command.add_option("--fingerprint", query.fingerprint, "A declared model by its fingerprint, at least 6 digits");
  command.add_option("--shard", query.shard, "tp_rank/tp_size[/pp_rank/pp_size[/kv_group]]; default: rank 0 of the model's sizes");
  command.add_option("--lora", query.lora, "LoRA adapter of the request (an extra key)");
  command.add_option("--salt", query.salt, "Cache salt of the request (an extra key)");
}

void AddViewCommands(CLI::App& app, const CommonOptions& common, Action& action) {
  AddSimple(app, "status", "Shows kvmd's own state; exit code 3 if its heartbeat is older than 2 s", common, action, RunStatus);
  AddSimple(app, "clients", "Connected processes and their counters", common, action, RunClients);
  AddSimple(app, "regions", "Regions: memory from which blocks are published", common, action, RunRegions);
  AddSimple(app, "models", "Declared models, and what workers of each look up and import", common, action, RunModels);
  AddSimple(app, "leases", "Leases: their holders, blocks, and time left", common, action, RunLeases);
  AddSimple(app, "drain", "Whether kvmd may be restarted now, and who would lose what; exit code 3 if something would be lost", common,
            action, RunDrain);

  auto hot = std::make_shared<HotOptions>();
  CLI::App* hot_command = app.add_subcommand("hot", "The prefixes that workers import most");
  hot_command->add_option("--limit", hot->limit, "Rows to show, 0 for all")->capture_default_str();
  hot_command->footer("A use counts half after ten minutes. What an engine finds in its own memory is no import.");
  hot_command->callback([&common, &action, hot] { action = [&common, hot] { return RunHot(common, *hot); }; });

  auto cache = std::make_shared<CacheOptions>();
  CLI::App* cache_command = app.add_subcommand("cache", "Who fills the host cache, the most memory first");
  AddChoice(*cache_command, "--by", cache->by, kCacheLines, "What a line is about", "worker");
  cache_command->footer("Memory without a worker is of those that have gone; others of their user take it over.");
  cache_command->callback([&common, &action, cache] { action = [&common, cache] { return RunCache(common, *cache); }; });

  auto verify = std::make_shared<VerifyOptions>();
  CLI::App* verify_command =
      app.add_subcommand("verify", "Reads a sample of blocks twice, as a worker does, and compares; exit code 3 if one differs");
  verify_command->add_option("--sample", verify->sample, "Blocks to read")->capture_default_str()->check(CLI::Range(1u, 1'000'000u));
  verify_command->add_option("--pause-ms", verify->pause_ms, "Time between the two readings")
      ->capture_default_str()
      ->check(CLI::Range(0u, 600'000u));
  verify_command->add_option("--model", verify->model, "Only of this model: model_id, row or fingerprint");
  verify_command->add_option("--region", verify->region, "Only of this region: name or row");
  verify_command->footer("Run it as the workers' user: it connects as a worker, with a region of its own that publishes nothing.");
  verify_command->callback([&common, &action, verify] { action = [&common, verify] { return RunVerify(common, *verify); }; });

  auto topo = std::make_shared<TopoOptions>();
  CLI::App* topo_command = app.add_subcommand("topo", "This machine's GPUs and the paths between them; needs no kvmd");
  topo_command->add_flag("--measure", topo->measure,
                         "Copy between all pairs and show GB/s: about 0.1 s a pair, some hundred MiB on each GPU");
  topo_command->footer("Without GPUs it prints the reason and exits with 0.");
  topo_command->callback([&common, &action, topo] { action = [&common, topo] { return RunTopo(common, *topo); }; });

  auto reclaim = std::make_shared<ReclaimCommandOptions>();
  CLI::App* reclaim_command =
      app.add_subcommand("reclaim", "Frees memory that dead workers have left, and waits for importers to unmap it");
  reclaim_command->add_option("--region", reclaim->region, "Only the region of this name");
  reclaim_command->add_option("--device", reclaim->device, "Only memory of this GPU (its UUID, as `kvctl regions` shows it), or host");
  reclaim_command->add_option("--older-than-s", reclaim->older_than_s, "Only of workers dead for so many seconds")->capture_default_str();
  reclaim_command->add_flag("--all", reclaim->all, "All of them");
  reclaim_command->add_flag("--force", reclaim->force, "Also memory with leased blocks (kvctl leases): the leases lose them");
  reclaim_command->footer("Users reclaim memory of their own workers; root and kvmd's user memory of all.");
  reclaim_command->callback([&common, &action, reclaim] { action = [&common, reclaim] { return RunReclaim(common, *reclaim); }; });

  auto evict = std::make_shared<EvictOptions>();
  CLI::App* evict_command = app.add_subcommand("evict", "Drops blocks from the host cache, for admins; what leases cover stays");
  evict_command->add_option("--model", evict->model, "Only of this model: model_id, or at least 6 digits of its fingerprint");
  evict_command->add_option("--key", evict->key, "Only this block and those behind it: KEYHEX");
  evict_command->add_option("--domain", evict->domain, "Only in this domain; default: all that you administer");
  evict_command->add_flag("--all", evict->all, "All blocks");
  evict_command->footer("Workers' own blocks stay. The memory stays the host cache's. kvmd's log says who asked, and what went.");
  evict_command->callback([&common, &action, evict] { action = [&common, evict] { return RunEvict(common, *evict); }; });

  auto options = std::make_shared<LsOptions>();
  CLI::App* command = app.add_subcommand("ls", "Published blocks, by region and block, or along a prefix");
  command->add_option("--model", options->model, "Only of this model: model_id, row or fingerprint");
  command->add_option("--region", options->region, "Only of this region: name or row");
  command->add_option("--prefix", options->prefix, "Only this block and its descendants: KEYHEX");
  command->add_option("--limit", options->limit, "Rows to show, 0 for all")->capture_default_str();
  command->callback([&common, &action, options] { action = [&common, options] { return RunLs(common, *options); }; });
}

void AddKeyCommands(CLI::App& app, const CommonOptions& common, Action& action) {
  auto find = std::make_shared<FindCommandOptions>();
  CLI::App* find_command = app.add_subcommand("find", "Where the blocks of a prompt are: region, process, block, generation");
  AddKeyOptions(*find_command, find->query);
  find_command->add_option("--limit", find->limit, "Keys to show, 0 for all")->capture_default_str();
  find_command->callback([&common, &action, find] { action = [&common, find] { return RunFind(common, *find); }; });

  auto query = std::make_shared<KeyQueryOptions>();
  auto last = std::make_shared<ExplainLastOptions>();
  CLI::App* explain_command = app.add_subcommand("explain", "Why a prompt is a miss: model field, depth, region or shard");
  AddKeyOptions(*explain_command, *query);
  const std::vector<CLI::Option*> of_a_prompt =
      explain_command->get_options([](const CLI::Option* option) { return option->get_name() != "--help"; });
  CLI::Option* of_last =
      explain_command->add_flag("--last", last->wanted, "Of the last misses of each worker instead: no tokens are needed");
  explain_command->add_option("--worker", last->worker, "With --last: only of this worker, by name or pid")->needs(of_last);
  for (CLI::Option* option : of_a_prompt) of_last->excludes(option);
  explain_command->callback([&common, &action, query, last] {
    action = [&common, query, last] { return last->wanted ? RunExplainLast(common, *last) : RunExplain(common, *query); };
  });
}

}  // namespace kvm::ctl
