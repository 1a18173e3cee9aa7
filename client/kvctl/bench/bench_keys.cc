// bench keys: deriving the keys of a prompt. bench memory: what kvmd needs for an entry.

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/bench/bench_setup.h"
#include "client/kvctl/cli/machine.h"
#include "client/kvctl/cli/observer.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

using std::chrono::steady_clock;

constexpr std::uint32_t kWarmUpRounds = 20;
constexpr double kFixedBytes = 20e6;  // kvmd without entries may have this much

std::uint64_t KvmdResidentBytes(const kvmwire::StatusReply& status) {
  // Of another user's kvmd, /proc says nothing; then it is what kvmd says itself.
  return ResidentBytes(static_cast<pid_t>(status.pid())).value_or(status.resident_bytes());
}

Result<BenchReport> MeasureMemory(const CommonOptions& common, const BenchOptions& options) {
  Result<BenchSetup> setup = BenchSetup::Start(common, options, options.entries);
  if (!setup) return setup.error();
  const auto read = [&](std::uint64_t& entries) -> Result<std::uint64_t> {
    Result<Observer> observer = Observer::Connect(setup->socket(), common.timeout());
    if (!observer) return observer.error();
    Result<kvmwire::StatusReply> status = observer->QueryStatus(false);
    if (!status) return status.error();
    entries = observer->registry().header().live_entries.load(std::memory_order_relaxed);
    return KvmdResidentBytes(*status);
  };
  std::uint64_t entries_before = 0, entries_after = 0;
  Result<std::uint64_t> before = read(entries_before);
  if (!before) return before.error();
  PeerConfig config = setup->Config(PeerRole::kHold, "bench-hold");
  config.entries = options.entries;
  config.block_bytes = 8;
  Result<Peer> publisher = StartPeer(config);
  if (!publisher) return publisher.error();
  Result<std::uint64_t> after = read(entries_after);
  if (!after) return after.error();

  // Others publish and retract at the node's kvmd meanwhile.
  const bool all_there = options.on_this_node ? entries_after >= options.entries : entries_after == entries_before + options.entries;
  if (!all_there) {
    return MakeError(Errc::kSystem,
                     "of " + std::to_string(options.entries) + " published entries kvmd has " + std::to_string(entries_after));
  }

  const auto resident = static_cast<double>(*after);
  const auto entries = static_cast<double>(entries_after);
  BenchReport report("memory");
  report.AddKvmd(common, options);
  report.Add("entries", "entries", entries, Unit::kCount);
  report.Add("resident_before_bytes", "kvmd resident before", static_cast<double>(*before), Unit::kBytes);
  report.Add("resident_after_bytes", "kvmd resident after", resident, Unit::kBytes);
  // Of fewer entries than fill them, the fixed bytes leave nothing to divide.
  if (resident > kFixedBytes)
    report.Add("bytes_per_entry", "an entry, without 20 MB", (resident - kFixedBytes) / entries, Unit::kBytesEach);
  report.Add("bytes_per_entry_with_fixed", "an entry, all of kvmd", resident / entries, Unit::kBytesEach);
  return report;
}

BenchReport MeasureKeys(const BenchOptions& options) {
  std::vector<std::uint32_t> tokens(options.tokens);
  SplitMix random(1);
  for (std::uint32_t& token : tokens) token = static_cast<std::uint32_t>(random.Below(128'000));
  const Fingerprint fingerprint = BenchModel(0).ComputeFingerprint();
  std::vector<BlockKey> keys;
  Samples us;
  for (std::uint32_t round = 0; round < kWarmUpRounds + options.rounds; ++round) {
    keys.clear();
    tokens[0] = round;  // another prompt each time
    const auto start = steady_clock::now();
    KeyChain(fingerprint, Shard{}).Extend(tokens, options.block_tokens, keys);
    const auto end = steady_clock::now();
    if (round >= kWarmUpRounds) us.Add(std::chrono::duration<double, std::micro>(end - start).count());
  }
  BenchReport report("keys");
  report.Add("tokens", "tokens", options.tokens, Unit::kCount);
  report.Add("block_tokens", "tokens a block", options.block_tokens, Unit::kCount);
  report.AddPercentiles("", "derive all keys", us);
  report.Add("rate_per_s", "keys", 1e6 * static_cast<double>(keys.size()) / us.Mean(), Unit::kPerSecond);
  return report;
}

}  // namespace

int RunBenchKeys(const CommonOptions& common, const BenchOptions& options) {
  if (options.tokens < options.block_tokens) return Fail(MakeError(Errc::kInvalidArgument, "--tokens has to be at least --block-tokens"));
  return FinishBench(common, options, MeasureKeys(options));
}

int RunBenchMemory(const CommonOptions& common, const BenchOptions& options) {
  return FinishBench(common, options, MeasureMemory(common, options));
}

}  // namespace kvm::ctl
