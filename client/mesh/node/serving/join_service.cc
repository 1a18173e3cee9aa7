#include "client/mesh/node/serving/join_service.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr std::uint32_t kMaxJoinMs = 600'000;
constexpr std::size_t kMaxSources = 3;  // that one request asks
constexpr milliseconds kIndexTimeout{500};
constexpr milliseconds kLook{2};  // pause between two looks at what kvmd has indexed

// The answer has to reach the worker before its own deadline.
Time AnswerBy(std::uint32_t within_ms) {
  const milliseconds within(std::min(within_ms, kMaxJoinMs));
  return steady_clock::now() + within - std::min(milliseconds(50), within / 10);
}

}  // namespace

// Marks the first key that a request lacks, so that others wait instead of fetching it, too.
class JoinService::Fetching {
 public:
  Fetching(std::unordered_set<BlockKey, SecretHash>& all, const BlockKey& key) : all_(all), key_(key), alone_(all.insert(key).second) {}
  ~Fetching() {
    if (alone_) all_.erase(key_);
  }
  Fetching(const Fetching&) = delete;
  Fetching& operator=(const Fetching&) = delete;
  bool alone() const noexcept { return alone_; }

 private:
  std::unordered_set<BlockKey, SecretHash>& all_;
  const BlockKey key_;
  const bool alone_;
};

struct JoinService::Run {
  const kvmmesh::Join& join;
  const BlockShape shape;
  const std::vector<BlockKey> keys;
  const Time deadline;
  std::shared_ptr<SlotPool> pool{};
  // One of them may have left meanwhile.
  std::vector<std::shared_ptr<Source>> asked{};
  std::size_t have = 0;     // leading blocks: local ones, and those that were fetched
  std::size_t fetched = 0;  // of them
  std::string reason{};
};

Awaitable<kvmmesh::Joined> JoinService::Join(kvmmesh::Join join) {
  ++node_.counters.joins;
  const Time begin = steady_clock::now();
  kvmmesh::Joined out;
  const Result<std::vector<BlockKey>> keys = DecodeKeys(join.keys());
  const Result<BlockShape> shape = BlockShape::FromMessage(join.shape(), node_.config.max_block_bytes);
  if (!keys || !shape) {
    out.set_reason(keys ? shape.error().message : keys.error().message);
    co_return out;
  }
  Run run{join, *shape, *keys, AnswerBy(join.within_ms())};
  // Blocks that are in memory are used as well: they may be needed from the disk the next time.
  if (node_.disk) node_.disk->Use(run.keys);
  // Another request may be fetching the same blocks.
  std::size_t local = Local(run.keys, join.known());
  while (local < run.keys.size() && fetching_.contains(run.keys[local]) && steady_clock::now() < run.deadline) {
    co_await Pause(kLook);
    local = Local(run.keys, join.known());
  }
  JoinRecord record{{}, {}, run.keys.size(), local, 0, {}, {}};
  run.have = local;
  if (local < run.keys.size() && steady_clock::now() < run.deadline) {
    co_await BringMissing(run);
    local = co_await WaitUntilIndexed(run, run.have);
    node_.counters.joined_blocks += run.fetched;
  }
  out.set_fetched(static_cast<std::uint32_t>(run.fetched));
  out.set_local(static_cast<std::uint32_t>(local));
  if (local < run.keys.size()) out.set_reason(run.reason);
  record.ended = steady_clock::now();
  record.took = std::chrono::floor<milliseconds>(record.ended - begin);
  record.fetched = run.fetched;
  for (const auto& source : run.asked) record.sources += (record.sources.empty() ? "" : ",") + source->name();
  record.reason = out.reason();
  log_.Add(std::move(record));
  co_return out;
}

std::vector<std::shared_ptr<Source>> JoinService::Sources() const {
  std::vector<std::shared_ptr<Source>> sources(peers_.all().begin(), peers_.all().end());
  if (disk_) sources.push_back(disk_);
  return sources;
}

Awaitable<void> JoinService::BringMissing(Run& run) {
  const Fetching fetching(fetching_, run.keys[run.have]);
  if (fetching.alone()) co_await FetchFromSources(run);
}

// kvmd indexes what was published in a moment.
Awaitable<std::size_t> JoinService::WaitUntilIndexed(const Run& run, std::size_t expected) const {
  const Time by = std::min(run.deadline, steady_clock::now() + kIndexTimeout);
  std::size_t local = Local(run.keys, run.join.known());
  while (local < expected && steady_clock::now() < by) {
    co_await Pause(kLook);
    local = Local(run.keys, run.join.known());
  }
  co_return local;
}

Awaitable<void> JoinService::FetchFromSources(Run& run) {
  run.reason = "no peer seems to have more";
  while (run.have < run.keys.size() && run.asked.size() < kMaxSources && steady_clock::now() < run.deadline) {
    const std::vector<std::shared_ptr<Source>> sources = Sources();
    const Choice choice = Choose(run.keys, run.have, run.join, run.shape.block_bytes, sources, run.asked);
    if (!choice.chosen) {
      // What the last one that was asked has said explains more.
      if (run.asked.empty()) run.reason = choice.reason;
      co_return;
    }
    const std::shared_ptr<Source>& source = sources[*choice.chosen];
    run.asked.push_back(source);
    const bool further = co_await FetchFrom(*source, choice.depth, run);
    if (!further) co_return;
  }
}

Awaitable<bool> JoinService::FetchFrom(Source& source, std::size_t depth, Run& run) {
  if (!run.pool) {
    Result<std::shared_ptr<SlotPool>> made = co_await Pool(run.shape);
    if (!made) {
      run.reason = made.error().message;
      co_return false;
    }
    run.pool = *made;
  }
  const std::span<const BlockKey> keys = run.keys;
  // Blocks of this prefix that are in the pool are not to be replaced by later ones of it.
  const std::size_t kept = run.pool->Touch(keys.first(run.have));
  const std::size_t room = run.pool->size() - std::min(run.pool->size(), run.pool->taken() + kept);
  if (room == 0) {
    run.reason = "the pool is too small for the prefix";
    co_return false;
  }
  FetchJob job{run.shape,
               keys.subspan(run.have, std::min(depth - run.have, room)),
               run.have == 0 ? BlockKey() : keys[run.have - 1],
               static_cast<std::uint32_t>(run.have),
               run.pool,
               run.deadline};
  const FetchOutcome outcome = co_await source.Fetch(job);
  run.have += outcome.fetched;
  run.fetched += outcome.fetched;
  run.reason = outcome.reason.empty() ? "no peer seems to have more" : source.name() + ": " + outcome.reason;
  run.pool->Touch(keys.first(run.have));
  co_return true;
}

Choice JoinService::Choose(std::span<const BlockKey> keys, std::size_t local, const kvmmesh::Join& join, std::uint64_t block_bytes,
                           const std::vector<std::shared_ptr<Source>>& sources, const std::vector<std::shared_ptr<Source>>& asked) const {
  std::vector<Candidate> candidates;
  for (const auto& source : sources) {
    Candidate& candidate = candidates.emplace_back(source->Consider(keys, local));
    candidate.hinted = !join.source_hint().empty() && source->IsNamed(join.source_hint());
    candidate.asked = std::find(asked.begin(), asked.end(), source) != asked.end();
  }
  return ChooseSource(candidates, {local, keys.size(), join.min_blocks(), block_bytes, join.prefill_blocks_per_s()});
}

kvmmesh::ExplainAnswer JoinService::Explain(const kvmmesh::Join& join) const {
  kvmmesh::ExplainAnswer out;
  const Result<std::vector<BlockKey>> keys = DecodeKeys(join.keys());
  if (!keys) {
    out.set_reason(keys.error().message);
    return out;
  }
  const std::size_t local = Local(*keys, join.known());
  out.set_local(static_cast<std::uint32_t>(local));
  const std::vector<std::shared_ptr<Source>> sources = Sources();
  const Choice choice = Choose(*keys, local, join, join.shape().block_bytes(), sources, {});
  out.set_reason(local == keys->size() ? "all blocks are here" : choice.reason);
  for (std::size_t i = 0; i < sources.size(); ++i) {
    kvmmesh::ExplainAnswer::Source& source = *out.add_sources();
    source.set_node(sources[i]->name());
    const Candidate whole = sources[i]->Consider(*keys, 0);
    source.set_blocks(static_cast<std::uint32_t>(whole.depth));
    source.set_disk(static_cast<std::uint32_t>(whole.disk));
    source.set_chosen(choice.chosen == i && local < keys->size());
    source.set_verdict(choice.verdicts[i]);
  }
  return out;
}

std::size_t JoinService::Local(std::span<const BlockKey> keys, std::size_t known) const {
  // The worker may find blocks in GPU memory, which this process can't.
  const std::size_t first = std::min(known, keys.size());
  return first + node_.client->Find(keys.subspan(first)).size();
}

Awaitable<void> JoinService::Pause(milliseconds time) const {
  asio::steady_timer timer(node_.io, time);
  boost::system::error_code ignored;
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

// Errors: those of MeshMemory::Get; kNotFound: the model is not known.
Awaitable<Result<std::shared_ptr<SlotPool>>> JoinService::Pool(const BlockShape& shape) {
  auto model = node_.models.find(shape.fingerprint);
  if (model == node_.models.end()) {
    // A worker may have declared it since the last scan.
    static_cast<void>(co_await scanner_.Once());
    model = node_.models.find(shape.fingerprint);
  }
  if (model == node_.models.end()) co_return MakeError(Errc::kNotFound, "no worker of this node has declared the model");
  co_return co_await node_.landing.Get(model->second, shape);
}

}  // namespace kvm::mesh
