#include "client/kvctl/bench/bench_host_cache.h"

#include <chrono>
#include <thread>

#include "client/kvctl/bench/bench_setup.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

using std::chrono::steady_clock;

constexpr std::uint32_t kRounds = 15;

Result<BenchRow> MeasureRow(const CommonOptions& common, const BenchOptions& options, const std::vector<DeviceUuid>& devices,
                            std::uint64_t block_bytes, CopiedRow what, const BesideRow& beside) {
  const DeviceUuid& importer = devices.back();
  const std::uint64_t blocks = options.bytes / block_bytes;
  Result<std::unique_ptr<ImportRun>> started =
      ImportRun::Start(common, options, 3 * blocks + 1024, {importer}, HostCacheArguments(options.bytes, block_bytes));
  if (!started) return started.error();
  ImportRun& run = **started;
  Result<SourceBlocks> source = run.Hold(devices.front(), options.bytes, block_bytes, 64 * kKiB);
  if (!source) return source.error();
  if (Status cached = WaitUntilCached(run.socket(), blocks); !cached) return cached.error();
  source->peer = Peer();
  if (Status connected = run.Connect(); !connected) return connected.error();
  Result<ImportRun::Target> target = run.Allocate(importer, *source);
  if (!target) return target.error();
  if (Status only = run.WaitForHostCacheOnly(*source, *target); !only) return only.error();
  what.importer = importer;
  what.owner = kHostMemory;
  what.bytes = options.bytes;
  what.rounds = kRounds;
  Result<BenchRow> row = run.Measure(*source, *target, what, 0, beside);
  if (!row) return row;
  if (Status right = run.Check(*source, *target); !right) return right.error();
  return row;
}

}  // namespace

std::vector<std::string> HostCacheArguments(std::uint64_t bytes, std::uint64_t block_bytes) {
  // A chunk holds whole blocks, so there is a little more of them than the bytes say.
  return {"--host-cache", std::to_string(bytes + bytes / 4 + 64 * block_bytes), "--orphan-ttl-s", "0"};
}

Status WaitUntilCached(const std::string& socket, std::uint64_t blocks) {
  Result<Observer> observer = Observer::Connect(socket, kBenchTimeout);
  if (!observer) return observer.error();
  for (const Deadline deadline = After(kBenchTimeout);;) {
    const Result<kvmwire::StatusReply> status = observer->QueryStatus(false);
    if (!status) return status.error();
    std::uint64_t held = 0;
    for (const auto& domain : status->domains()) held += domain.host_cache().blocks();
    if (held >= blocks) return {};
    if (Status go_on = GoOn(); !go_on) return go_on;
    if (steady_clock::now() >= deadline)
      return MakeError(Errc::kDeadlineExceeded, "host cache: " + std::to_string(held) + " of " + std::to_string(blocks) + " blocks came");
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

Result<std::vector<BenchRow>> HostCacheRows(const CommonOptions& common, const BenchOptions& options,
                                            const std::vector<DeviceUuid>& devices, const BesideRow& beside) {
  struct Kind {
    const char *name, *title;
    std::uint64_t block_bytes;
  };
  std::vector<BenchRow> rows;
  for (const Kind& kind : {Kind{"host_cache_64k", "in scattered 64 KiB chunks", kMiB},
                           Kind{"host_cache_blocks_64k", "in scattered blocks of 64 KiB", 64 * kKiB}}) {
    CopiedRow what;
    what.name = kind.name;
    what.title = "host cache: " + HumanBytes(options.bytes) + " " + kind.title;
    Result<BenchRow> row = MeasureRow(common, options, devices, kind.block_bytes, what, beside);
    if (!row) return row.error();
    rows.push_back(std::move(*row));
  }
  return rows;
}

}  // namespace kvm::ctl
