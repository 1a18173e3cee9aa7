#include "client/kvctl/bench/bench_peer.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/process/roles.h"
#include "client/kvctl/workload/pool_bytes.h"
#include "client/kvctl/workload/worker_client.h"
#include "kvclient/kvclient.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;

constexpr std::uint64_t kRewriteBatch = 512;
constexpr std::uint64_t kFlushEvery = 64 * kRewriteBatch;  // bounds what is under way to kvmd
constexpr auto kPeerTimeout = 30'000ms;
constexpr auto kReadyTimeout = 600s;

class PeerProcess {
 public:
  PeerProcess(Channel channel, const PeerConfig& config)
      : channel_(std::move(channel)), config_(config), order_(config.entries, config.scatter) {}

  int Run() {
    PeerReady ready;
    const Status set_up = SetUp();
    if (!set_up) ready.failure.Set(set_up.error().ToString());
    if (!channel_.SendStruct(ready) || !set_up) return kUnhealthy;
    return Serve();
  }

 private:
  Status SetUp() {
    WorkerClientOptions options;
    options.socket = config_.socket.Get();
    options.name = config_.name.Get();
    options.devices = {config_.device};
    options.model = BenchModel(config_.run);
    options.verify_one_in = config_.verify_one_in;
    Result<WorkerClient> worker = ConnectWorker(options);
    if (!worker) return worker.error();
    client_ = std::move(worker->client);
    if (config_.role == PeerRole::kWatch) return {};
    PoolOptions pool;
    pool.name = config_.name.Get();
    pool.geometry =
        PlaneGeometry(config_.entries, config_.block_bytes, config_.chunk_bytes == 0 ? config_.block_bytes : config_.chunk_bytes);
    pool.device = config_.device;
    pool.kv_group = config_.kv_group;
    pool.offload = config_.offload;
    Result<std::shared_ptr<Region>> region = AllocatePool(*client_, worker->model, pool);
    if (!region) return region.error();
    region_ = std::move(*region);
    bytes_ = std::make_unique<PoolBytes>(*region_);
    if (config_.shuffle) shuffled_ = ShuffledBlocks(config_.entries, config_.run);
    return config_.role == PeerRole::kHold ? PublishAll() : Status();
  }

  int Serve() {
    switch (config_.role) {
      case PeerRole::kHold: static_cast<void>(channel_.Receive()); return kHealthy;
      case PeerRole::kChurn: return Churn();
      case PeerRole::kWatch: return Watch();
    }
    return kUnhealthy;
  }

  // Entries [first, first + count) of the run, written and published as one batch.
  Status PublishBatch(std::uint64_t first, std::uint64_t count) {
    batch_.clear();
    keys_.clear();
    blocks_.clear();
    for (std::uint64_t n = first; n < first + count; ++n) {
      const BlockKey key = BenchKey(config_.run, config_.first_entry + n);
      const std::uint32_t block = shuffled_.empty() ? order_(n) : shuffled_[n];
      const BlockWrite write = region_->BeginWrite(block);
      keys_.push_back(key);
      blocks_.push_back(block);
      const std::uint64_t depth = n % config_.chain;
      const BlockKey parent = depth == 0 ? BlockKey{} : BenchKey(config_.run, config_.first_entry + n - 1);
      batch_.push_back({key, parent, static_cast<std::uint32_t>(depth), write});
    }
    if (config_.fill) {
      if (Status filled = bytes_->Fill(keys_, blocks_); !filled) return filled;
    }
    const PublishOutcome outcome = region_->Publish(batch_);
    if (outcome.readable == count) return {};
    return MakeError(Errc::kSystem,
                     std::to_string(count - outcome.readable) + " of " + std::to_string(count) + " blocks could not be published");
  }

  Status PublishAll() {
    for (std::uint64_t n = 0; n < config_.entries; n += kRewriteBatch) {
      if (Status published = PublishBatch(n, std::min(kRewriteBatch, config_.entries - n)); !published) return published;
      if (n % kFlushEvery != 0) continue;
      if (Status flushed = region_->Flush(After(kPeerTimeout)); !flushed) return flushed;
    }
    if (Status flushed = region_->Flush(After(kPeerTimeout)); !flushed) return flushed;
    return CheckNoneRefused();
  }

  Status CheckNoneRefused() const {
    const std::uint64_t refused = client_->Stats().publishes_refused;
    if (refused == 0) return {};
    return MakeError(Errc::kResourceExhausted, "kvmd refused " + std::to_string(refused) + " of the published blocks");
  }

  // Each pass over the region withdraws what the pass before it published.
  int Churn() {
    const auto start = steady_clock::now();
    std::uint64_t n = 0;
    while (!channel_.Readable()) {
      for (std::uint64_t end = n + kFlushEvery; n < end; n += kRewriteBatch) {
        if (!PublishBatch(n, kRewriteBatch)) return kUnhealthy;
      }
      if (!region_->Flush(After(kPeerTimeout))) return kUnhealthy;
    }
    if (!channel_.ReceiveStruct<PeerStop>()) return kUnhealthy;
    const double seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
    if (!CheckNoneRefused()) return kUnhealthy;
    return channel_.SendStruct(PeerDone{n, seconds}) ? kHealthy : kUnhealthy;
  }

  int Watch() {
    for (;;) {
      Result<WatchFor> request = channel_.ReceiveStruct<WatchFor>();
      if (!request) return request.error().code == Errc::kUnavailable ? kHealthy : kUnhealthy;
      if (!channel_.SendStruct(WatchStarted{})) return kUnhealthy;
      WatchSeen seen;
      for (const auto give_up = steady_clock::now() + 1s; steady_clock::now() < give_up;) {
        if (client_->Find({&request->key, 1}).empty()) continue;
        seen.at_ns = MonotonicNs();
        break;
      }
      if (!channel_.SendStruct(seen)) return kUnhealthy;
    }
  }

  Channel channel_;
  const PeerConfig config_;
  const BlockOrder order_;
  std::shared_ptr<Client> client_;
  std::shared_ptr<Region> region_;
  std::unique_ptr<PoolBytes> bytes_;  // of region_
  std::vector<std::uint32_t> shuffled_;
  // Of the batch being written.
  std::vector<PublishRequest> batch_;
  std::vector<BlockKey> keys_;
  std::vector<std::uint32_t> blocks_;
};

}  // namespace

BlockKey BenchKey(std::uint64_t run, std::uint64_t n) noexcept { return {Mix(run, 2 * n), Mix(run, 2 * n + 1)}; }

ModelSpec BenchModel(std::uint64_t run) {
  ModelSpec spec;
  spec.model_id = "kvctl-bench";
  spec.revision = "run-" + std::to_string(run);
  spec.kv_dtype = "bytes";
  spec.layout = "opaque";
  spec.num_layers = spec.num_kv_heads = spec.head_size = 1;
  spec.block_tokens = 16;
  return spec;
}

BlockOrder::BlockOrder(std::uint64_t entries, bool scatter) noexcept : entries_(entries) {
  if (!scatter || entries < 3) return;
  step_ = static_cast<std::uint64_t>(static_cast<double>(entries) * 0.6180339887) | 1;
  while (std::gcd(step_, entries) != 1) step_ += 2;
}

std::vector<std::uint32_t> ShuffledBlocks(std::uint64_t count, std::uint64_t seed) {
  std::vector<std::uint32_t> blocks(count);
  std::iota(blocks.begin(), blocks.end(), 0u);
  SplitMix random(seed);
  for (std::uint64_t i = count; i > 1; --i) std::swap(blocks[i - 1], blocks[random.Below(i)]);
  return blocks;
}

Geometry PlaneGeometry(std::uint64_t blocks, std::uint64_t block_bytes, std::uint64_t chunk_bytes) {
  const auto chunks = static_cast<std::uint32_t>(block_bytes / chunk_bytes);
  return Geometry{static_cast<std::uint32_t>(blocks),
                  {GeometryPart{0, 0, chunk_bytes, chunk_bytes, chunks, chunks > 1 ? blocks * chunk_bytes : 0}}};
}

std::int64_t MonotonicNs() noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

Result<Peer> StartPeer(const PeerConfig& config) {
  Result<std::string> binary = OwnBinary();
  if (!binary) return binary.error();
  Result<std::pair<Channel, Channel>> channels = Channel::Pair();
  if (!channels) return channels.error();
  const int fd = channels->second.fd();
  Result<ChildProcess> process = ChildProcess::Start(*binary, {kBenchPeerRole, std::to_string(fd)}, {.keep_fd = fd});
  if (!process) return process.error();
  Peer peer{std::move(*process), std::move(channels->first)};
  channels->second.Close();
  if (Status sent = peer.channel.SendStruct(config); !sent) return sent.error();
  Result<PeerReady> ready = peer.channel.ReceiveStruct<PeerReady>(steady_clock::now() + kReadyTimeout);
  if (!ready) return ready.error();
  if (!ready->failure.empty()) return MakeError(Errc::kSystem, "benchmark peer: " + ready->failure.Get());
  return peer;
}

int RunBenchPeer(Channel channel) {
  Result<PeerConfig> config = channel.ReceiveStruct<PeerConfig>();
  if (!config) return kUnhealthy;
  return PeerProcess(std::move(channel), *config).Run();
}

}  // namespace kvm::ctl
