// bench find: lookups of chains of present keys, with the publisher in another process; optionally
// while another one publishes at full rate.
#include "client/kvctl/bench/bench_find.h"

#include <algorithm>

#include "client/kvctl/bench/bench_setup.h"

namespace kvm::ctl {
namespace {

using std::chrono::steady_clock;

constexpr std::uint64_t kChurnBlocks = 64 * 1024;

// Microseconds of lookups that find all of their keys. One that misses a key is an error: to find
// less is to be faster.
Result<Samples> MeasureFind(const Client& client, Lookups& lookups, const BenchOptions& options) {
  Samples us;
  us.Reserve(options.rounds);
  for (std::uint32_t round = 0; round < kWarmUpLookups + options.rounds; ++round) {
    if (Status go_on = GoOn(); !go_on) return go_on.error();
    const std::span<const BlockKey> keys = lookups.Next();
    const auto start = steady_clock::now();
    const Match match = client.Find(keys);
    const auto end = steady_clock::now();
    if (Status all = AllFound(client, match, keys.size()); !all) return all.error();
    if (round >= kWarmUpLookups) us.Add(std::chrono::duration<double, std::micro>(end - start).count());
  }
  return us;
}

struct BusyTimes {
  Samples find_us;
  double publish_rate = 0;
};

Result<BusyTimes> MeasureBusy(const BenchSetup& setup, const Client& client, Lookups& lookups, const BenchOptions& options) {
  PeerConfig config = setup.Config(PeerRole::kChurn, "bench-churn");
  config.first_entry = options.entries;
  config.entries = kChurnBlocks;
  Result<Peer> churn = StartPeer(config);
  if (!churn) return churn.error();
  Result<Samples> times = MeasureFind(client, lookups, options);
  if (!times) return times.error();
  if (Status sent = churn->channel.SendStruct(PeerStop{}); !sent) return sent.error();
  Result<PeerDone> done = churn->channel.ReceiveStruct<PeerDone>(After(std::chrono::seconds(60)));
  if (!done) return done.error();
  return BusyTimes{std::move(*times), done->seconds > 0 ? static_cast<double>(done->blocks) / done->seconds : 0};
}

}  // namespace

std::span<const BlockKey> Lookups::Next() {
  keys_.clear();
  if (options_.shuffle) {
    for (std::uint32_t i = 0; i < options_.keys; ++i) keys_.push_back(BenchKey(run_, random_.Below(options_.entries)));
  } else {
    const std::uint64_t first = random_.Below(options_.entries / options_.keys) * options_.keys;
    for (std::uint32_t i = 0; i < options_.keys; ++i) keys_.push_back(BenchKey(run_, first + i));
  }
  return keys_;
}

Result<BenchReport> BenchFind(const CommonOptions& common, const BenchOptions& options, const BesideFind& beside) {
  if (options.keys == 0 || options.entries < options.keys) return MakeError(Errc::kInvalidArgument, "--entries has to be at least --keys");
  Result<BenchSetup> setup = BenchSetup::Start(common, options, options.entries + (options.while_publishing ? 2 * kChurnBlocks : 0));
  if (!setup) return setup.error();
  PeerConfig config = setup->Config(PeerRole::kHold, "bench-hold");
  config.entries = options.entries;
  config.chain = options.keys;
  Result<Peer> publisher = StartPeer(config);
  if (!publisher) return publisher.error();
  Result<std::shared_ptr<Client>> client = setup->Connect("bench-find");
  if (!client) return client.error();

  Lookups lookups(setup->run(), options);
  Result<Samples> idle = MeasureFind(**client, lookups, options);
  if (!idle) return idle.error();
  BenchReport report("find");
  report.AddKvmd(common, options);
  report.Add("entries", "entries", static_cast<double>(options.entries), Unit::kCount);
  report.Add("keys", options.shuffle ? "keys a lookup, shuffled" : "keys a lookup", options.keys, Unit::kCount);
  report.Add("rounds", "lookups", options.rounds, Unit::kCount);
  report.AddPercentiles("", "find", *idle);
  report.Add("rate_per_s", "keys found", 1e6 * options.keys / idle->Mean(), Unit::kPerSecond);
  if (options.while_publishing) {
    Result<BusyTimes> busy = MeasureBusy(*setup, **client, lookups, options);
    if (!busy) return busy.error();
    report.AddPercentiles("busy_", "find while publishing", busy->find_us);
    report.Add("busy_p99_ratio", "p99 busy / idle", busy->find_us.p99() / idle->p99(), Unit::kRatio);
    report.Add("busy_publish_rate_per_s", "published meanwhile", busy->publish_rate, Unit::kPerSecond);
  }
  if (beside) {
    if (Status done = beside(setup->run(), *idle, report); !done) return done.error();
  }
  return report;
}

int RunBenchFind(const CommonOptions& common, const BenchOptions& options) {
  return FinishBench(common, options, BenchFind(common, options));
}

}  // namespace kvm::ctl
