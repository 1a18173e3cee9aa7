#include "client/kvctl/replay/replay_worker.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/replay/replay_wire.h"
#include "client/kvctl/workload/block_pool.h"
#include "client/kvctl/workload/pool_bytes.h"
#include "client/kvctl/workload/request.h"
#include "client/kvctl/workload/worker_client.h"
#include "kvclient/kvclient.h"

namespace kvm::ctl {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;

constexpr auto kConnectTimeout = 10'000ms;
constexpr auto kImportTimeout = 5'000ms;
constexpr auto kFlushTimeout = 5'000ms;
constexpr auto kMarkTimeout = 1'000ms;
constexpr auto kMarkTtl = 60'000ms;

class Stopwatch {
 public:
  std::uint64_t Lap() {
    const auto now = steady_clock::now();
    const auto lap = std::chrono::duration_cast<std::chrono::nanoseconds>(now - start_).count();
    start_ = now;
    return static_cast<std::uint64_t>(lap);
  }

 private:
  steady_clock::time_point start_ = steady_clock::now();
};

class Worker {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Worker>> Create(const WorkerConfig& config) {
    auto worker = std::unique_ptr<Worker>(new Worker(config));
    WorkerClientOptions options;
    options.socket = config.socket.Get();
    options.name = config.name.Get();
    options.connect_timeout = kConnectTimeout;
    options.devices = {config.device};
    options.model.model_id = config.model_id.Get();
    options.model.revision = config.revision.Get();
    options.model.kv_dtype = "bytes";
    options.model.layout = "opaque";
    options.model.num_layers = options.model.num_kv_heads = 1;
    options.model.head_size = static_cast<std::uint32_t>(config.block_bytes);
    options.model.block_tokens = config.block_tokens;
    Result<WorkerClient> connected = ConnectWorker(options);
    if (!connected) return connected.error();
    worker->client_ = std::move(connected->client);
    worker->model_ = std::move(connected->model);
    PoolOptions pool;
    pool.name = config.name.Get();
    pool.geometry = Geometry::Contiguous(config.pool_blocks, config.block_bytes);
    pool.device = config.device;
    pool.offload = config.offload;
    Result<std::shared_ptr<Region>> region = AllocatePool(*worker->client_, worker->model_, pool);
    if (!region) return region.error();
    worker->region_ = std::move(*region);
    worker->bytes_ = std::make_unique<PoolBytes>(*worker->region_);
    return worker;
  }

  // Declaring the model again returns once what peers have registered before is mapped.
  PeersMet Meet() {
    PeersMet met;
    if (Result<Model> again = client_->DeclareModel(model_.spec, After(kSetUpTimeout)); !again) met.failure.Set(again.error().ToString());
    const std::vector<UnmappedRegion> unmapped = client_->UnmappedRegions();
    if (!unmapped.empty()) met.unmapped.Set(unmapped.front().name + ": " + unmapped.front().reason.ToString());
    return met;
  }

  ServeReply Serve(std::span<const std::uint64_t> hash_ids) {
    ServeReply reply;
    Stopwatch watch;
    DeriveKeys(hash_ids);
    reply.keys_ns = watch.Lap();
    places_ = pool_.Serve(keys_);
    written_.assign(keys_.size(), false);
    requests_.clear();
    if (Status compared = CheckHeld(reply); !compared) return Failed(compared.error());
    if (Status hit = TakeHits(reply); !hit) return Failed(hit.error());
    if (Status computed = ComputeRest(); !computed) return Failed(computed.error());
    if (!requests_.empty()) {
      watch.Lap();
      const PublishOutcome outcome = region_->Publish(requests_);
      reply.publish_ns = watch.Lap();
      reply.published = outcome.readable > 0;
      if (config_.in_order) Flush(reply);
    }
    mark_.End();  // kvmd reads it after the publish
    return reply;
  }

  WorkerSummary Summary() const {
    WorkerSummary summary;
    const ClientStats stats = client_->Stats();
    summary.evictions = pool_.evictions();
    summary.publishes_refused = stats.publishes_refused;
    summary.publishes_deferred = stats.publishes_deferred;
    summary.blocks_from_host_cache = stats.blocks_from_host_cache;
    summary.blocks_offloaded = stats.blocks_offloaded;
    summary.offloads_dropped = stats.offloads_dropped;
    summary.offloads_refused = stats.offloads_refused;
    summary.computing_waits = stats.computing_waits;
    summary.computing_waits_in_vain = stats.computing_waits_in_vain;
    return summary;
  }

 private:
  explicit Worker(const WorkerConfig& config) : config_(config), pool_(config.policy, config.pool_blocks) {}

  static ServeReply Failed(const Error& error) {
    ServeReply reply;
    reply.failure.Set(error.ToString());
    return reply;
  }

  // A trace has no tokens, only an id per block; the two halves of the id stand for the block's
  // tokens.
  void DeriveKeys(std::span<const std::uint64_t> hash_ids) {
    KeyChain chain(model_.fingerprint, Shard{});
    keys_.clear();
    root_ = chain.parent();
    for (const std::uint64_t id : hash_ids) {
      const std::uint32_t tokens[2] = {static_cast<std::uint32_t>(id), static_cast<std::uint32_t>(id >> 32)};
      keys_.push_back(chain.Next(tokens));
    }
  }

  // Before anything is written: a block that leaves in this request may be the place of another key
  // of it.
  Status CheckHeld(ServeReply& reply) {
    std::vector<BlockKey> keys;
    std::vector<std::uint32_t> blocks;
    for (std::size_t at = 0; at < places_.size(); ++at) {
      if (!Held(at)) continue;
      keys.push_back(keys_[at]);
      blocks.push_back(places_[at].held);
    }
    return CountMismatches(keys, blocks, reply);
  }

  // Up to the first block that neither this pool nor a peer has. One that a peer has and that the
  // pool does not keep has no place to be imported to, so it ends the hit as well.
  Status TakeHits(ServeReply& reply) {
    Match match;
    std::size_t first = 0, at = 0;  // match[i] is of keys_[first + i]
    while (at < keys_.size()) {
      if (Held(at)) {
        ++reply.blocks_local;
        ++at;
        continue;
      }
      std::size_t end = at;
      while (end < keys_.size() && ToWrite(end)) ++end;
      if (end == at) return {};
      if (at >= first + match.size()) {
        match = Find(at, reply);
        first = at;
      }
      const Match wanted = match.Slice(at - first, end - at);
      if (wanted.empty()) return {};
      const Result<std::size_t> valid = Import(wanted, at, reply);
      if (!valid) return valid.error();
      at += *valid;
      if (*valid < wanted.size()) return {};
    }
    return {};
  }

  Match Find(std::size_t at, ServeReply& reply) {
    FindOptions options;
    options.include_own = false;
    options.destination = region_.get();
    Stopwatch watch;
    const std::span<const BlockKey> keys = std::span(keys_).subspan(at);
    Match match = client_->Find(keys, options);
    if (config_.wait_computing_ms > 0 && match.size() < keys.size()) match = FindOrMark(keys, match.size(), options);
    reply.find_ns += watch.Lap();
    reply.looked_up = true;
    if (config_.mesh_socket.empty() || match.size() == keys.size()) return match;
    JoinOptions join;
    join.deadline = After(std::chrono::milliseconds(config_.join_ms));
    join.min_blocks = match.size() + 1;
    join.prefill_tokens_per_s = config_.prefill_tokens_per_s;
    join.mesh_socket = config_.mesh_socket.Get();
    const JoinOutcome joined = client_->JoinCache(*region_, keys, join);
    if (joined.blocks > match.size()) {
      reply.blocks_joined += joined.fetched;
      match = client_->Find(keys, options);
    }
    reply.join_ns += watch.Lap();
    reply.joined = true;
    return match;
  }

  // Of several workers that miss the same keys at once, the one whose mark came first computes
  // them.
  Match FindOrMark(std::span<const BlockKey> keys, std::size_t found, const FindOptions& options) {
    mark_ = client_->MarkComputing(keys.subspan(found), kMarkTtl);
    static_cast<void>(mark_.Wait(After(kMarkTimeout)));
    return client_->FindWaiting(keys, {.bound = std::chrono::milliseconds(config_.wait_computing_ms)}, options);
  }

  // `match` is of the keys from `at` on. The number of leading blocks that are valid; what failed
  // is computed.
  Result<std::size_t> Import(const Match& match, std::size_t at, ServeReply& reply) {
    const std::vector<std::uint32_t> blocks = KeptBlocks(at, match.size());
    ImportOptions options;
    options.deadline = After(kImportTimeout);
    Stopwatch watch;
    Result<ImportTicket> ticket = client_->Import(match, *region_, blocks, options);
    if (!ticket) return ticket.error();
    if (Status done = ticket->Wait(After(2 * kImportTimeout)); !done) return done.error();
    reply.import_ns += watch.Lap();
    reply.imported = true;
    const ImportResult& result = ticket->result();
    reply.blocks_imported += result.valid;
    reply.bytes_imported += result.bytes;
    reply.failed_import_blocks += result.failed.size();
    const std::span<const BlockKey> keys = std::span(keys_).subspan(at, match.size());
    if (Status compared = CountMismatches(keys.first(result.valid), std::span(blocks).first(result.valid), reply); !compared)
      return compared.error();
    if (Status filled = bytes_->Fill(keys.subspan(result.valid), std::span(blocks).subspan(result.valid)); !filled) return filled.error();
    for (std::size_t i = 0; i < result.writes.size(); ++i) Keep(at + i, result.writes[i], i >= result.valid || config_.publish_imported);
    return result.valid;
  }

  // "Prefill" of everything behind the hit: what the pool keeps of it and does not hold yet.
  Status ComputeRest() {
    std::vector<BlockKey> keys;
    std::vector<std::uint32_t> blocks;
    for (std::size_t at = 0; at < keys_.size(); ++at) {
      if (!ToWrite(at)) continue;
      keys.push_back(keys_[at]);
      blocks.push_back(places_[at].kept);
      Keep(at, region_->BeginWrite(places_[at].kept), true);
    }
    if (config_.prefill_us_per_block > 0)
      std::this_thread::sleep_for(
          std::chrono::duration<double, std::micro>(config_.prefill_us_per_block * static_cast<double>(keys.size())));
    return bytes_->Fill(keys, blocks);
  }

  bool Held(std::size_t at) const { return places_[at].held != BlockPool::kNoBlock; }
  bool ToWrite(std::size_t at) const { return !Held(at) && places_[at].kept != BlockPool::kNoBlock && !written_[at]; }
  std::vector<std::uint32_t> KeptBlocks(std::size_t at, std::size_t count) const {
    std::vector<std::uint32_t> blocks;
    for (std::size_t i = at; i < at + count; ++i) blocks.push_back(places_[i].kept);
    return blocks;
  }

  Status CountMismatches(std::span<const BlockKey> keys, std::span<const std::uint32_t> blocks, ServeReply& reply) {
    const Result<std::size_t> wrong = bytes_->CountWrong(keys, blocks);
    if (!wrong) return wrong.error();
    reply.mismatched_blocks += *wrong;
    return {};
  }

  void Keep(std::size_t at, const BlockWrite& write, bool publish) {
    written_[at] = true;
    if (publish) requests_.push_back({keys_[at], at == 0 ? root_ : keys_[at - 1], static_cast<std::uint32_t>(at), write});
  }

  void Flush(ServeReply& reply) {
    Stopwatch watch;
    reply.flush_failed = !region_->Flush(After(kFlushTimeout)).has_value();
    reply.flush_ns = watch.Lap();
  }

  const WorkerConfig config_;
  std::shared_ptr<Client> client_;
  Model model_;
  std::shared_ptr<Region> region_;
  std::unique_ptr<PoolBytes> bytes_;  // of region_
  BlockPool pool_;
  // Of the request being served.
  BlockKey root_;
  std::vector<BlockKey> keys_;
  std::span<const BlockPool::Place> places_;  // of keys_
  std::vector<bool> written_;                 // of keys_, by this request
  std::vector<PublishRequest> requests_;
  ComputingMark mark_;
};

// The hash ids that follow a ServeRequest; an error if it is none, or if others come.
Result<std::vector<std::uint64_t>> ReceiveIds(Channel& channel, const ServeRequest& header) {
  if (header.hash_id_count > kMaxRequestBlocks) return MakeError(Errc::kProtocol, "too long a request from the coordinator");
  std::vector<std::uint64_t> ids(header.hash_id_count);
  for (std::size_t at = 0; at < ids.size(); at += kIdsPerMessage) {
    const std::span<std::uint64_t> part = std::span(ids).subspan(at, std::min(kIdsPerMessage, ids.size() - at));
    const Result<std::vector<std::byte>> message = channel.Receive();
    if (!message) return message.error();
    if (message->size() != part.size_bytes()) return MakeError(Errc::kProtocol, "cut request from the coordinator");
    std::memcpy(part.data(), message->data(), message->size());
  }
  return ids;
}

}  // namespace

int RunReplayWorker(Channel channel) {
  Result<WorkerConfig> config = channel.ReceiveStruct<WorkerConfig>();
  if (!config) return kUnhealthy;
  WorkerReady ready;
  Result<std::unique_ptr<Worker>> worker = Worker::Create(*config);
  if (!worker) ready.failure.Set(worker.error().ToString());
  if (!channel.SendStruct(ready) || !worker) return kUnhealthy;
  if (!channel.ReceiveStruct<MeetPeers>()) return kUnhealthy;
  const PeersMet met = (*worker)->Meet();
  if (!channel.SendStruct(met) || !met.failure.empty()) return kUnhealthy;
  for (;;) {
    const Result<ServeRequest> header = channel.ReceiveStruct<ServeRequest>();
    if (!header) return kUnhealthy;
    const Result<std::vector<std::uint64_t>> ids = ReceiveIds(channel, *header);
    if (!ids) return kUnhealthy;
    if (header->finish) return channel.SendStruct((*worker)->Summary()) ? kHealthy : kUnhealthy;
    const ServeReply reply = (*worker)->Serve(*ids);
    if (!channel.SendStruct(reply) || !reply.failure.empty()) return kUnhealthy;
  }
}

}  // namespace kvm::ctl
