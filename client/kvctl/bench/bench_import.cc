// bench import: copying scattered blocks from a peer, validated. Here from host memory, against a
// plain memcpy of the same number of bytes between two regions; on GPUs: bench_import_gpu.h.
#include <algorithm>
#include <cstring>

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/bench/bench_host_cache.h"
#include "client/kvctl/bench/bench_import_gpu.h"
#include "client/kvctl/bench/bench_setup.h"
#include "client/kvctl/cli/clock.h"
#include "client/kvctl/workload/block_content.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

using std::chrono::steady_clock;

constexpr std::uint32_t kCopyRounds = 7;
constexpr std::uint64_t kSmallImportBytes = 1 << 20;

class ImportBench {
 public:
  ImportBench(const BenchOptions& options, const PoolMemory& memory, std::uint64_t blocks)
      : options_(options), memory_(memory), blocks_(blocks), order_(blocks, true) {}

  Result<BenchReport> Run(const CommonOptions& common) {
    if (Status set_up = SetUp(common, {}); !set_up) return set_up.error();
    Samples import_s, find_us, memcpy_s, memcpy_blocks_s;
    // Alternating, so that whatever else the machine does hits all of them.
    for (std::uint32_t round = 0; round <= kCopyRounds; ++round) {
      if (Status go_on = GoOn(); !go_on) return go_on.error();
      Result<Timing> timing = Import(0, blocks_);
      if (!timing) return timing.error();
      const double whole = CopyWhole(), scattered = CopyBlocks();
      if (round == 0) continue;  // page faults
      import_s.Add(timing->import_s);
      find_us.Add(1e6 * timing->find_s);
      memcpy_s.Add(whole);
      memcpy_blocks_s.Add(scattered);
    }
    // What is timed has to be right, too; the copies have just overwritten what the imports
    // brought.
    if (Result<Timing> last = Import(0, blocks_); !last) return last.error();
    if (Status right = Check("import", 0, blocks_); !right) return right.error();
    verified_ = client_->Stats().blocks_verified;
    Result<Samples> small = MeasureSmall();
    if (!small) return small.error();
    const auto bytes = static_cast<double>(blocks_ * options_.block_bytes);
    BenchReport report("import");
    report.AddKvmd(common, options_);
    report.AddMemory(memory_);
    report.Add("bytes", "bytes", bytes, Unit::kBytes);
    report.Add("block_bytes", "block size", static_cast<double>(options_.block_bytes), Unit::kBytes);
    report.Add("verified_blocks", "blocks compared with checksums", static_cast<double>(verified_), Unit::kCount);
    report.Add("p50_us", "import p50", 1e6 * import_s.p50(), Unit::kMicroseconds);
    report.Add("p99_us", "import slowest", 1e6 * import_s.p99(), Unit::kMicroseconds);
    report.Add("find_p50_us", "find before it p50", find_us.p50(), Unit::kMicroseconds);
    report.Add("rate_per_s", "blocks imported", static_cast<double>(blocks_) / import_s.p50(), Unit::kPerSecond);
    report.Add("import_gb_per_s", "import", bytes / 1e9 / import_s.p50(), Unit::kGigabytesPerSecond);
    report.Add("memcpy_gb_per_s", "memcpy, one piece", bytes / 1e9 / memcpy_s.p50(), Unit::kGigabytesPerSecond);
    report.Add("memcpy_blocks_gb_per_s", "memcpy, the same blocks", bytes / 1e9 / memcpy_blocks_s.p50(), Unit::kGigabytesPerSecond);
    report.Add("ratio_to_memcpy", "import / memcpy", memcpy_s.p50() / import_s.p50(), Unit::kRatio);
    report.Add("ratio_to_memcpy_blocks", "import / memcpy of blocks", memcpy_blocks_s.p50() / import_s.p50(), Unit::kRatio);
    report.Add("small_import_bytes", "small import", static_cast<double>(SmallBlocks() * options_.block_bytes), Unit::kBytes);
    report.AddPercentiles("small_import_", "find to validated", *small);
    if (options_.on_this_node) return report;  // that kvmd's host cache is not ours to fill
    Result<Samples> kept = FromHostCache(common);
    if (!kept) return kept.error();
    report.Add("host_cache_gb_per_s", "import from the host cache", bytes / 1e9 / kept->p50(), Unit::kGigabytesPerSecond);
    report.Add("host_cache_ratio_to_memcpy", "host cache / memcpy", memcpy_s.p50() / kept->p50(), Unit::kRatio);
    return report;
  }

 private:
  struct Timing {
    double find_s = 0, import_s = 0;
  };

  std::uint64_t SmallBlocks() const { return std::clamp<std::uint64_t>(kSmallImportBytes / options_.block_bytes, 1, blocks_); }

  // The same import once the publisher has gone, from a kvmd that keeps its blocks.
  Result<Samples> FromHostCache(const CommonOptions& common) {
    destination_.reset();
    source_.reset();
    client_.reset();
    publisher_ = Peer();
    setup_ = BenchSetup();
    keys_.clear();
    targets_.clear();
    if (Status set_up = SetUp(common, HostCacheArguments(blocks_ * options_.block_bytes, options_.block_bytes)); !set_up)
      return set_up.error();
    if (Status cached = WaitUntilCached(setup_.socket(), blocks_); !cached) return cached.error();
    publisher_ = Peer();
    Samples seconds;
    // Until the publisher's region has left, some may come from there, or be gone by the time they
    // are copied.
    for (const Deadline deadline = After(kBenchTimeout); seconds.count() < kCopyRounds;) {
      if (Status go_on = GoOn(); !go_on) return go_on.error();
      const std::uint64_t before = client_->Stats().blocks_from_host_cache;
      Result<Timing> timing = Import(0, blocks_);
      if (!timing && (timing.error().code != Errc::kStale || steady_clock::now() >= deadline)) return timing.error();
      if (timing && client_->Stats().blocks_from_host_cache - before == blocks_) seconds.Add(timing->import_s);
      if (steady_clock::now() >= deadline) return MakeError(Errc::kDeadlineExceeded, "host cache: not all blocks were imported from it");
    }
    if (Status right = Check("host cache", 0, blocks_); !right) return right.error();
    return seconds;
  }

  // Of the blocks of `count` keys from `first` on.
  Status Check(const char* what, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t n = first; n < first + count; ++n) {
      if (BlockHolds(BenchKey(setup_.run(), n), {destination_->BlockData(order_(n)), options_.block_bytes})) continue;
      return MakeError(Errc::kSystem, std::string(what) + ": block " + std::to_string(n) + " does not hold what its key says");
    }
    return {};
  }

  Status SetUp(const CommonOptions& common, std::vector<std::string> kvmd_arguments) {
    Result<BenchSetup> setup = BenchSetup::Start(common, options_, 2 * blocks_ + 1024, std::move(kvmd_arguments));
    if (!setup) return setup.error();
    setup_ = std::move(*setup);
    PeerConfig config = setup_.Config(PeerRole::kHold, "bench-hold");
    config.entries = blocks_;
    config.block_bytes = options_.block_bytes;
    config.fill = config.scatter = true;
    Result<Peer> publisher = StartPeer(config);
    if (!publisher) return publisher.error();
    publisher_ = std::move(*publisher);
    Result<std::shared_ptr<Client>> client = setup_.Connect("bench-import");
    if (!client) return client.error();
    client_ = std::move(*client);
    Result<std::shared_ptr<Region>> destination =
        setup_.Allocate(*client_, "bench-import", PlaneGeometry(blocks_, options_.block_bytes, options_.block_bytes));
    if (!destination) return destination.error();
    destination_ = std::move(*destination);
    Result<std::shared_ptr<Region>> source =
        setup_.Allocate(*client_, "bench-memcpy", PlaneGeometry(blocks_, options_.block_bytes, options_.block_bytes));
    if (!source) return source.error();
    source_ = std::move(*source);
    std::memset(source_->SegmentData(), 1, blocks_ * options_.block_bytes);
    for (std::uint64_t n = 0; n < blocks_; ++n) keys_.push_back(BenchKey(setup_.run(), n));
    // Where neighbours of the chain land in this process: as scattered as where they come from.
    for (std::uint64_t n = 0; n < blocks_; ++n) targets_.push_back(order_(n));
    return {};
  }

  Result<Timing> Import(std::uint64_t first, std::uint64_t count) {
    Timing timing;
    const auto start = steady_clock::now();
    const Match match = client_->Find(std::span(keys_).subspan(first, count));
    timing.find_s = SecondsSince(start);
    if (Status all = AllFound(*client_, match, count); !all) return all.error();
    const auto import_start = steady_clock::now();
    Result<ImportTicket> ticket = client_->Import(match, *destination_, std::span(targets_).subspan(first, count));
    if (!ticket) return ticket.error();
    if (Status done = ticket->Wait(After(kBenchTimeout)); !done) return done.error();
    timing.import_s = SecondsSince(import_start);
    if (Status all = AllImported(ticket->result()); !all) return all.error();
    return timing;
  }

  double CopyWhole() {
    const auto start = steady_clock::now();
    std::memcpy(destination_->SegmentData(), source_->SegmentData(), blocks_ * options_.block_bytes);
    return SecondsSince(start);
  }

  // The blocks of the import, in its order, without keys and generations.
  double CopyBlocks() {
    const auto start = steady_clock::now();
    for (const std::uint32_t block : targets_) std::memcpy(destination_->BlockData(block), source_->BlockData(block), options_.block_bytes);
    return SecondsSince(start);
  }

  Result<Samples> MeasureSmall() {
    Samples us;
    SplitMix random(setup_.run());
    const std::uint64_t count = SmallBlocks();
    for (std::uint32_t round = 0; round < options_.rounds; ++round) {
      if (Status go_on = GoOn(); !go_on) return go_on.error();
      Result<Timing> timing = Import(random.Below(blocks_ - count + 1), count);
      if (!timing) return timing.error();
      us.Add(1e6 * (timing->find_s + timing->import_s));
    }
    // Once more into blocks that hold something else. Not each time: that would leave them in the
    // cache.
    CopyWhole();
    if (Result<Timing> last = Import(0, count); !last) return last.error();
    if (Status right = Check("small import", 0, count); !right) return right.error();
    return us;
  }

  const BenchOptions& options_;
  const PoolMemory& memory_;
  const std::uint64_t blocks_;
  const BlockOrder order_;
  BenchSetup setup_;
  Peer publisher_;
  std::shared_ptr<Client> client_;
  std::shared_ptr<Region> destination_, source_;
  std::vector<BlockKey> keys_;
  std::vector<std::uint32_t> targets_;
  std::uint64_t verified_ = 0;  // by the large imports
};

Result<BenchReport> BenchHostImport(const CommonOptions& common, const BenchOptions& options, const PoolMemory& memory) {
  const std::uint64_t blocks = options.bytes / options.block_bytes;
  if (blocks == 0 || blocks > Geometry::kMaxBlocks || options.block_bytes % 8 != 0) {
    return MakeError(Errc::kInvalidArgument, "--bytes has to hold at least one block, and --block-bytes to be a multiple of 8");
  }
  return ImportBench(options, memory, blocks).Run(common);
}

Result<BenchReport> BenchGpuImport(const CommonOptions& common, const BenchOptions& options, const PoolMemory& all) {
  const PoolMemory memory = FirstTwo(all);
  const Result<std::vector<BenchRow>> rows = MeasureGpuImports(common, options, memory);
  if (!rows) return rows.error();
  BenchReport report = GpuImportReport(common, options, memory);
  report.AddRows(RowsJson(*rows), RowsText(*rows));
  return report;
}

}  // namespace

int RunBenchImport(const CommonOptions& common, const BenchOptions& options) {
  const Result<PoolMemory> memory = ChoosePoolMemory(options.backend, options.devices);
  if (!memory) return Fail(memory.error());
  return FinishBench(common, options,
                     memory->cuda() ? BenchGpuImport(common, options, *memory) : BenchHostImport(common, options, *memory));
}

}  // namespace kvm::ctl
