// bench publish: how fast one client publishes, how soon another process sees it, what a retract
// costs.
#include <algorithm>
#include <numeric>
#include <thread>

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/bench/bench_setup.h"
#include "client/kvctl/cli/clock.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

using std::chrono::steady_clock;

constexpr std::uint64_t kPublishBatch = 512;
constexpr std::uint32_t kWarmUpBatches = 50;

struct PublishTimes {
  Samples batch_us;         // of the calls that begin and publish one batch
  double blocks_per_s = 0;  // until kvmd has answered all of them
};

// Publishes every block of the region once, with keys [first_key, …).
Result<PublishTimes> PublishAll(Region& region, std::uint64_t run, std::uint64_t first_key) {
  const std::uint64_t entries = region.block_count();
  PublishTimes times;
  times.batch_us.Reserve(entries / kPublishBatch + 1);
  std::vector<PublishRequest> batch;
  // Keys come out of a prefill; making them is not part of publishing.
  std::vector<BlockKey> keys(entries);
  for (std::uint64_t n = 0; n < entries; ++n) keys[n] = BenchKey(run, first_key + n);
  const auto start = steady_clock::now();
  for (std::uint64_t n = 0; n < entries; n += kPublishBatch) {
    if (Status go_on = GoOn(); !go_on) return go_on.error();
    const auto batch_start = steady_clock::now();
    batch.clear();
    for (std::uint64_t i = n; i < std::min(n + kPublishBatch, entries); ++i) {
      const auto depth = static_cast<std::uint32_t>(i - n);
      batch.push_back({keys[i], depth == 0 ? BlockKey{} : keys[i - 1], depth, region.BeginWrite(static_cast<std::uint32_t>(i))});
    }
    const PublishOutcome outcome = region.Publish(batch);
    if (outcome.readable != batch.size()) return MakeError(Errc::kSystem, "not all blocks of a batch could be published");
    times.batch_us.Add(1e6 * SecondsSince(batch_start));
  }
  if (Status flushed = region.Flush(After(kBenchTimeout)); !flushed) return flushed.error();
  times.blocks_per_s = static_cast<double>(entries) / SecondsSince(start);
  return times;
}

// What has been flushed has to be found, all of it; a rate of lost blocks would be a fine rate.
Status CheckFound(const Client& client, std::uint64_t run, std::uint64_t first_key, std::uint64_t entries) {
  if (const std::uint64_t refused = client.Stats().publishes_refused; refused > 0)
    return MakeError(Errc::kResourceExhausted, "kvmd refused " + std::to_string(refused) + " of the published blocks");
  std::vector<BlockKey> keys;
  for (std::uint64_t n = 0; n < entries; n += kPublishBatch) {
    if (Status go_on = GoOn(); !go_on) return go_on;
    keys.clear();
    for (std::uint64_t i = n; i < std::min(n + kPublishBatch, entries); ++i) keys.push_back(BenchKey(run, first_key + i));
    if (Status all = AllFound(client, client.Find(keys), keys.size()); !all) return all;
  }
  return {};
}

Status CheckNoneFound(const Client& client, std::uint64_t run, std::uint64_t first_key, std::uint64_t entries) {
  for (std::uint64_t n = 0; n < entries; ++n) {
    const BlockKey key = BenchKey(run, first_key + n);
    if (!client.Find({&key, 1}).empty()) return MakeError(Errc::kSystem, "a block that was retracted is still found");
  }
  return {};
}

// From Publish of one block to the moment another process finds it.
Result<Samples> MeasureVisibility(const BenchSetup& setup, Region& region, std::uint64_t first_key, std::uint32_t rounds) {
  Result<Peer> watcher = StartPeer(setup.Config(PeerRole::kWatch, "bench-watch"));
  if (!watcher) return watcher.error();
  Samples us;
  SplitMix random(setup.run());
  for (std::uint32_t round = 0; round < kWarmUpBatches + rounds; ++round) {
    const BlockKey key = BenchKey(setup.run(), first_key + round);
    const std::uint32_t block = round % region.block_count();
    const BlockWrite write = region.BeginWrite(block);
    if (Status sent = watcher->channel.SendStruct(WatchFor{key}); !sent) return sent.error();
    if (Result<WatchStarted> started = watcher->channel.ReceiveStruct<WatchStarted>(After(kBenchTimeout)); !started) return started.error();
    // Publishes don't come in step with anything in kvmd.
    std::this_thread::sleep_for(std::chrono::microseconds(random.Between(100, 400)));
    const PublishRequest request{key, BlockKey{}, 0, write};
    const std::int64_t published_ns = MonotonicNs();
    if (region.Publish({&request, 1}).readable != 1) return MakeError(Errc::kSystem, "a block could not be published");
    Result<WatchSeen> seen = watcher->channel.ReceiveStruct<WatchSeen>(After(kBenchTimeout));
    if (!seen) return seen.error();
    if (seen->at_ns == 0) return MakeError(Errc::kSystem, "a published block was not visible to another process within a second");
    if (round >= kWarmUpBatches) us.Add(static_cast<double>(seen->at_ns - published_ns) / 1e3);
  }
  return us;
}

// Nanoseconds a block, of a region whose blocks are all published, with new keys from `first_key`
// on, and then retracted.
Result<double> MeasureRetract(const Client& client, Region& region, std::uint64_t run, std::uint64_t first_key,
                              std::span<const std::uint32_t> order) {
  if (Result<PublishTimes> published = PublishAll(region, run, first_key); !published) return published.error();
  if (Status found = CheckFound(client, run, first_key, order.size()); !found) return found.error();
  const auto start = steady_clock::now();
  region.Retract(order);
  const double each_ns = 1e9 * SecondsSince(start) / static_cast<double>(order.size());
  if (Status none = CheckNoneFound(client, run, first_key, order.size()); !none) return none.error();
  return each_ns;
}

Result<BenchReport> Measure(const CommonOptions& common, const BenchOptions& options) {
  Result<BenchSetup> setup = BenchSetup::Start(common, options, options.entries + kPublishBatch);
  if (!setup) return setup.error();
  Result<std::shared_ptr<Client>> client = setup->Connect("bench-publish");
  if (!client) return client.error();
  Result<std::shared_ptr<Region>> region =
      setup->Allocate(**client, "bench-publish", Geometry::Contiguous(static_cast<std::uint32_t>(options.entries), 64));
  if (!region) return region.error();
  Result<PublishTimes> fresh = PublishAll(**region, setup->run(), 0);
  if (!fresh) return fresh.error();
  if (Status found = CheckFound(**client, setup->run(), 0, options.entries); !found) return found.error();
  Result<PublishTimes> reused = PublishAll(**region, setup->run(), options.entries);
  if (!reused) return reused.error();
  if (Status found = CheckFound(**client, setup->run(), options.entries, options.entries); !found) return found.error();
  std::vector<std::uint32_t> order((*region)->block_count());
  std::iota(order.begin(), order.end(), 0u);
  const Result<double> retract_ns = MeasureRetract(**client, **region, setup->run(), 2 * options.entries, order);
  if (!retract_ns) return retract_ns.error();
  order = ShuffledBlocks(order.size(), setup->run());
  const Result<double> retract_random_ns = MeasureRetract(**client, **region, setup->run(), 3 * options.entries, order);
  if (!retract_random_ns) return retract_random_ns.error();
  Result<Samples> visible = MeasureVisibility(*setup, **region, 4 * options.entries, options.rounds);
  if (!visible) return visible.error();

  BenchReport report("publish");
  report.AddKvmd(common, options);
  report.Add("entries", "blocks", static_cast<double>(options.entries), Unit::kCount);
  report.Add("batch", "blocks a batch", static_cast<double>(kPublishBatch), Unit::kCount);
  report.AddPercentiles("", "publish call, one batch", fresh->batch_us);
  report.Add("rate_per_s", "published, new blocks", fresh->blocks_per_s, Unit::kPerSecond);
  report.Add("reuse_rate_per_s", "published, reused blocks", reused->blocks_per_s, Unit::kPerSecond);
  report.AddPercentiles("publish_visible_", "publish to visible elsewhere", *visible);
  report.Add("retract_ns", "retract a block, in order", *retract_ns, Unit::kNanoseconds);
  report.Add("retract_random_ns", "retract a block, random order", *retract_random_ns, Unit::kNanoseconds);
  return report;
}

}  // namespace

int RunBenchPublish(const CommonOptions& common, const BenchOptions& options) {
  return FinishBench(common, options, Measure(common, options));
}

}  // namespace kvm::ctl
