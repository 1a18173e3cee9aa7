#include <CLI/CLI.hpp>

#include <chrono>
#include <memory>
#include <string>

#include "client/kvctl/bench/bench_command.h"
#include "client/kvctl/bench/bench_find.h"
#include "client/kvctl/bench/bench_setup.h"
#include "tests/bench/commands.h"
#include "tests/bench/redis_baseline.h"

namespace kvm::bench {
namespace {

using ctl::BenchOptions;
using ctl::BenchReport;
using ctl::Samples;

Result<Samples> TimeLookups(RedisBaseline& redis, const BenchOptions& options, std::uint64_t run) {
  Samples times;
  ctl::Lookups lookups(run, options);
  for (std::uint32_t round = 0; round < ctl::kWarmUpLookups + options.rounds; ++round) {
    if (Status go_on = ctl::GoOn(); !go_on) return go_on.error();
    const Result<double> us = redis.MultiGet(lookups.Next());
    if (!us) return us.error();
    if (round >= ctl::kWarmUpLookups) times.Add(*us);
  }
  return times;
}

// The keys of the run are removed from the redis-server again, also after an error.
Result<Samples> MeasureRedis(const std::string& socket, const BenchOptions& options, std::uint64_t run) {
  Result<RedisBaseline> redis = RedisBaseline::Connect(socket);
  if (!redis) return redis.error();
  const Status loaded = redis->Load(run, options.entries);
  Result<Samples> times = loaded ? TimeLookups(*redis, options, run) : loaded.error();
  const Status unloaded = redis->Unload(run, options.entries);
  if (times && !unloaded) return unloaded.error();
  return times;
}

int RunFind(const ctl::CommonOptions& common, const BenchOptions& options, const std::string& socket) {
  const auto beside = [&](std::uint64_t run, Samples& find_us, BenchReport& report) -> Status {
    Result<Samples> redis = MeasureRedis(socket, options, run);
    if (!redis) return redis.error();
    report.AddPercentiles("redis_mget_", "redis MGET", *redis);
    report.Add("ratio_to_redis", "faster than redis", redis->p50() / find_us.p50(), ctl::Unit::kRatio);
    return {};
  };
  return ctl::FinishBench(common, options, ctl::BenchFind(common, options, beside));
}

}  // namespace

void AddFindCommand(CLI::App& app, const ctl::CommonOptions& common, ctl::Action& action) {
  const auto socket = std::make_shared<std::string>();
  ctl::BenchCommand find(app, "find", "Lookups of present keys, next to MGET of the same keys at a redis-server", common, action,
                         [socket](const auto& common_options, const auto& options) { return RunFind(common_options, options, *socket); });
  find.Entries().Lookups();
  find.command()
      .add_option("--against-redis", *socket, "Unix socket of a redis-server; the keys are removed from it afterwards")
      ->required();
}

}  // namespace kvm::bench
