#include "client/kvctl/bench/import_run.h"

#include "client/kvctl/cli/text.h"
#include "client/kvctl/workload/pool_bytes.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

using std::chrono::steady_clock;

constexpr std::uint32_t kWarmUpImports = 2;

double Between(steady_clock::time_point from, steady_clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

Status AllRight(const Result<std::size_t>& wrong, std::uint64_t blocks) {
  if (!wrong) return wrong.error();
  if (*wrong == 0) return {};
  return MakeError(Errc::kSystem,
                   "import: " + std::to_string(*wrong) + " of " + std::to_string(blocks) + " blocks do not hold what their keys say");
}

}  // namespace

Result<std::unique_ptr<ImportRun>> ImportRun::Start(const CommonOptions& common, const BenchOptions& options, std::uint64_t max_entries,
                                                    std::vector<DeviceUuid> devices, std::vector<std::string> kvmd_arguments) {
  auto run = std::make_unique<ImportRun>();
  Result<BenchSetup> setup = BenchSetup::Start(common, options, max_entries, std::move(kvmd_arguments));
  if (!setup) return setup.error();
  run->setup_ = std::move(*setup);
  run->devices_ = std::move(devices);
  return run;
}

Result<SourceBlocks> ImportRun::Hold(const DeviceUuid& owner, std::uint64_t bytes, std::uint64_t block_bytes, std::uint64_t chunk_bytes) {
  SourceBlocks source;
  source.block_bytes = block_bytes;
  source.chunk_bytes = chunk_bytes;
  source.blocks = bytes / block_bytes;
  source.kv_group = groups_++;
  PeerConfig config = setup_.Config(PeerRole::kHold, "bench-hold-" + std::to_string(entries_));
  config.device = owner;
  config.first_entry = entries_;
  config.entries = source.blocks;
  config.block_bytes = block_bytes;
  config.chunk_bytes = chunk_bytes;
  config.kv_group = source.kv_group;
  config.fill = config.shuffle = true;
  Result<Peer> peer = StartPeer(config);
  if (!peer) return peer.error();
  source.peer = std::move(*peer);
  for (std::uint64_t n = 0; n < source.blocks; ++n) source.keys.push_back(BenchKey(setup_.run(), entries_ + n));
  entries_ += source.blocks;
  return source;
}

Status ImportRun::Connect() {
  Result<std::shared_ptr<Client>> client = setup_.Connect("bench-import", devices_);
  if (!client) return client.error();
  client_ = std::move(*client);
  return {};
}

Result<ImportRun::Target> ImportRun::Allocate(const DeviceUuid& device, const SourceBlocks& source) {
  Target target;
  Result<std::shared_ptr<Region>> region =
      setup_.Allocate(*client_, "bench-import-" + std::to_string(targets_),
                      PlaneGeometry(source.blocks, source.block_bytes, source.chunk_bytes), device, source.kv_group);
  if (!region) return region.error();
  target.region = std::move(*region);
  target.blocks = ShuffledBlocks(source.blocks, Mix(setup_.run(), ++targets_));
  return target;
}

Status ImportRun::ImportOnce(std::span<const BlockKey> keys, const Target& target, std::span<const std::uint32_t> blocks, unsigned max_sms,
                             Timing* timing) {
  FindOptions find;
  find.destination = target.region.get();
  ImportOptions options;
  options.max_sms = max_sms;
  const auto start = steady_clock::now();
  const Match match = client_->Find(keys, find);
  const auto found = steady_clock::now();
  if (Status all = AllFound(*client_, match, keys.size()); !all) return all;
  const auto called = steady_clock::now();
  Result<ImportTicket> ticket = client_->Import(match, *target.region, blocks, options);
  if (!ticket) return ticket.error();
  if (Status done = ticket->Wait(After(kBenchTimeout)); !done) return done;
  const auto end = steady_clock::now();
  if (Status all = AllImported(ticket->result()); !all) return all;
  if (timing == nullptr) return {};
  timing->find_s.Add(Between(start, found));
  timing->import_s.Add(Between(called, end));
  timing->whole_s.Add(Between(start, end));
  return {};
}

Result<ImportRun::Timing> ImportRun::Import(const SourceBlocks& source, const Target& target, std::uint64_t bytes, unsigned max_sms,
                                            std::uint32_t rounds, bool wander) {
  const std::uint64_t count = bytes / source.block_bytes;
  SplitMix random(Mix(setup_.run(), 0x77));
  Timing timing;
  for (std::uint32_t round = 0; round < kWarmUpImports + rounds; ++round) {
    if (Status go_on = GoOn(); !go_on) return go_on.error();
    const std::uint64_t first = wander ? random.Below(source.blocks - count + 1) : 0;
    Status imported = ImportOnce(std::span(source.keys).subspan(first, count), target, std::span(target.blocks).subspan(first, count),
                                 max_sms, round < kWarmUpImports ? nullptr : &timing);
    if (!imported) return imported.error();
  }
  if (Status right = ImportOverOther(source, target, count, max_sms); !right) return right.error();
  return timing;
}

Status ImportRun::ImportOverOther(const SourceBlocks& source, const Target& target, std::uint64_t count, unsigned max_sms) {
  const auto keys = std::span(source.keys).first(count);
  const auto blocks = std::span(target.blocks).first(count);
  const std::uint64_t other_run = Mix(setup_.run(), 0x78);
  std::vector<BlockKey> other;
  other.reserve(count);
  for (std::uint64_t n = 0; n < count; ++n) other.push_back(BenchKey(other_run, n));
  PoolBytes bytes(*target.region);
  if (Status filled = bytes.Fill(other, blocks); !filled) return filled;
  if (Status imported = ImportOnce(keys, target, blocks, max_sms, nullptr); !imported) return imported;
  return AllRight(bytes.CountWrong(keys, blocks), count);
}

Result<BenchRow> ImportRun::Measure(const SourceBlocks& source, const Target& target, const CopiedRow& what, unsigned max_sms,
                                    const BesideRow& beside) {
  const auto call_beside = [&]() -> Status { return beside ? beside(what) : Status(); };
  if (Status before = call_beside(); !before) return before.error();
  Result<Timing> timing = Import(source, target, what.bytes, max_sms, what.rounds);
  if (!timing) return timing.error();
  if (Status after = call_beside(); !after) return after.error();
  BenchRow row;
  row.name = what.name;
  row.title = what.title;
  row.bytes_per_s = static_cast<double>(what.bytes) / timing->import_s.p50();
  row.value = row.bytes_per_s / 1e9;
  row.note = "find before it " + HumanNanoseconds(1e9 * timing->find_s.p50());
  return row;
}

Status ImportRun::WaitForHostCacheOnly(const SourceBlocks& source, const Target& target) {
  std::string last;
  for (const Deadline deadline = After(kBenchTimeout); steady_clock::now() < deadline;) {
    if (Status go_on = GoOn(); !go_on) return go_on;
    const std::uint64_t before = client_->Stats().blocks_from_host_cache;
    Status imported = ImportOnce(source.keys, target, target.blocks, 0, nullptr);
    if (imported && client_->Stats().blocks_from_host_cache - before == source.blocks) return {};
    if (imported) continue;
    // A block of the peer's region may be found and be gone by the time it is copied.
    if (imported.error().code != Errc::kStale) return imported;
    last = ": " + imported.error().message;
  }
  return MakeError(Errc::kDeadlineExceeded, "host cache: not all blocks were imported from it" + last);
}

Status ImportRun::Check(const SourceBlocks& source, const Target& target) {
  return AllRight(PoolBytes(*target.region).CountWrong(source.keys, target.blocks), source.blocks);
}

}  // namespace kvm::ctl
