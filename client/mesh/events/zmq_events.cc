#include "client/mesh/events/zmq_events.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "client/mesh/events/event_sequence.h"
#include "client/mesh/log/event_log.h"

namespace kvm::mesh {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kHeartbeat{1000};
constexpr milliseconds kLeastRest{20};
constexpr int kRestPerWork = 3;
constexpr milliseconds kPauseAfterFailure{1000};
// Blocks of descriptions that wait for a pass.
constexpr std::size_t kMaxWaiting = std::size_t{1} << 18;
// Changes that are added to those that wait; more of them are dropped, and all is asked for anew.
constexpr std::size_t kMaxChanges = std::size_t{1} << 20;

FeedOptions ToFeedOptions(const EventSettings& settings, const std::string& node) {
  FeedOptions out;
  out.node = node;
  out.model = settings.model;
  out.most_blocks = settings.most_blocks;
  return out;
}

}  // namespace

ZmqEvents::ZmqEvents(const EventSettings& settings, const std::string& node, std::unique_ptr<EventSockets> sockets, UniqueFd wake)
    : sockets_(std::move(sockets)),
      wake_(std::move(wake)),
      feed_(ToFeedOptions(settings, node), FirstSequence(std::chrono::system_clock::now())) {
  thread_ = std::thread([this] { Run(); });
}

ZmqEvents::~ZmqEvents() {
  ending_ = true;
  Wake();
  thread_.join();
}

void ZmqEvents::Wake() noexcept {
  const std::uint64_t one = 1;
  // Fails only if it is set already.
  static_cast<void>(!::write(wake_.get(), &one, sizeof(one)));
}

void ZmqEvents::Use(HeldChanges changes) {
  {
    const MutexLock lock(mutex_);
    if (!held_ || changes.all) {
      held_ = std::move(changes);
    } else if (held_->changes.size() + changes.changes.size() > kMaxChanges) {
      wants_again_ = true;
    } else {
      held_->changes.insert(held_->changes.end(), changes.changes.begin(), changes.changes.end());
      held_->models = std::move(changes.models);
    }
  }
  Wake();
}

bool ZmqEvents::Describe(BlockDescription description) {
  {
    const MutexLock lock(mutex_);
    if (waiting_ + description.keys.size() > kMaxWaiting) {
      lost_ += description.keys.size();
      return false;
    }
    waiting_ += description.keys.size();
    descriptions_.push_back(std::move(description));
  }
  Wake();
  return true;
}

void ZmqEvents::TakeBox() {
  std::optional<HeldChanges> held;
  std::vector<BlockDescription> descriptions;
  {
    const MutexLock lock(mutex_);
    held = std::exchange(held_, std::nullopt);
    descriptions = std::exchange(descriptions_, {});
    waiting_ = 0;
  }
  changed_ = changed_ || held || !descriptions.empty();
  if (held) feed_.Use(*held);
  for (BlockDescription& description : descriptions) feed_.Describe(std::move(description));
}

void ZmqEvents::Pass() {
  const Time begin = steady_clock::now();
  next_pass_ = begin + kPauseAfterFailure;
  feed_.Pass([this](const PublishedBatch& batch) {
    sockets_->Publish(batch);
    last_sent_ = steady_clock::now();
  });
  changed_ = false;
  const Time end = steady_clock::now();
  next_pass_ = end + std::max<steady_clock::duration>(kLeastRest, kRestPerWork * (end - begin));
}

void ZmqEvents::Step() {
  const auto until = woken_ || changed_ ? std::min(next_pass_, last_sent_ + kHeartbeat) : last_sent_ + kHeartbeat;
  const auto left = std::chrono::ceil<milliseconds>(until - steady_clock::now());
  sockets_->Wait(wake_.get(), std::clamp(left, milliseconds(0), kHeartbeat));
  std::uint64_t woken = 0;
  woken_ = ::read(wake_.get(), &woken, sizeof(woken)) > 0 || woken_;
  sockets_->AnswerReplays([this](std::uint64_t sequence) { return feed_.Replay(sequence); });
  if (steady_clock::now() >= next_pass_) {
    if (std::exchange(woken_, false)) TakeBox();
    if (changed_) Pass();
  }
  if (steady_clock::now() >= last_sent_ + kHeartbeat) {
    last_sent_ = steady_clock::now();
    feed_.Heartbeat([this](const PublishedBatch& batch) { sockets_->Publish(batch); });
  }
}

void ZmqEvents::Run() {
  last_sent_ = steady_clock::now();
  while (!ending_) {
    try {
      Step();
    } catch (const std::exception& failed) {
      // A lack of memory. The feed knows what it no longer knows, and tells it again; what was on
      // the way to it is asked for again.
      changed_ = true;
      wants_again_ = true;
      next_pass_ = steady_clock::now() + kPauseAfterFailure;
      LogException("events_failed", failed);
    }
    const MutexLock lock(mutex_);
    counts_ = feed_.counts();
    latest_ = feed_.latest();
  }
}

void ZmqEvents::Describe(kvmmesh::EventStatus& out) const {
  out.set_endpoint(sockets_->endpoint());
  out.set_replay_endpoint(sockets_->replay_endpoint());
  const MutexLock lock(mutex_);
  out.set_sequence(latest_);
  out.set_blocks(counts_.blocks);
  out.set_described_blocks(counts_.described);
  out.set_undescribed_blocks(counts_.undescribed);
  out.set_unreachable_blocks(counts_.unreachable);
  out.set_other_variant_blocks(counts_.other_variant);
  out.set_forgotten_blocks(counts_.forgotten);
  out.set_refused_blocks(counts_.refused + lost_);
  out.set_batches(counts_.batches);
  out.set_stored_blocks(counts_.stored);
  out.set_removed_blocks(counts_.removed);
  out.set_replays(counts_.replays);
  out.set_snapshots(counts_.snapshots);
}

Result<std::unique_ptr<NodeEvents>> StartEvents(const EventSettings& settings, const std::string& node) {
  Result<std::unique_ptr<EventSockets>> sockets = EventSockets::Bind(settings.endpoint, settings.replay);
  if (!sockets) return sockets.error();
  UniqueFd wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return SystemError("--events: eventfd");
  return std::unique_ptr<NodeEvents>(new ZmqEvents(settings, node, std::move(*sockets), std::move(wake)));
}

}  // namespace kvm::mesh
