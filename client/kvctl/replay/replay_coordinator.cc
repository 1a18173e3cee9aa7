// The coordinator of a replay: starts the workers, feeds them, adds up what they report, and models
// the same worker without sharing.
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <deque>
#include <optional>
#include <random>
#include <thread>

#include "client/kvctl/cli/progress_bar.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/process/child_process.h"
#include "client/kvctl/process/interrupt.h"
#include "client/kvctl/process/roles.h"
#include "client/kvctl/replay/replay.h"
#include "client/kvctl/replay/replay_pace.h"
#include "client/kvctl/replay/replay_wire.h"
#include "client/kvctl/workload/lonely_pool.h"
#include "proto/base/random.h"

namespace kvm::ctl {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A request takes milliseconds; a worker silent for this long is stuck.
constexpr auto kAnswerTimeout = 60s;
constexpr auto kWorkerStartTimeout = 60s;
constexpr milliseconds kExitGrace{5000};
constexpr std::size_t kWindowPerWorker = 2;
// How long a wait may go on before an interrupt is seen.
constexpr milliseconds kWaitSlice{100};

struct WorkerHandle {
  ChildProcess process;
  Channel channel;
  LonelyPool alone;
  std::deque<std::size_t> waiting;       // requests still to be served, in order
  std::optional<std::size_t> in_flight;  // request
  steady_clock::time_point answer_due;
};

class Coordinator {
 public:
  Coordinator(const ReplayOptions& options, const PoolMemory& memory, const std::string& socket, const std::vector<Request>& requests)
      : options_(options), memory_(memory), socket_(socket), requests_(requests), progress_("replay", requests.size()) {}

  Result<ReplayReport> Run() {
    if (Status started = StartWorkers(); !started) return started.error();
    if (Status met = IntroduceWorkers(); !met) return met.error();
    const std::vector<std::uint32_t> worker_of = AssignWorkers(requests_, options_.routing, options_.workers, options_.seed);
    const auto start = steady_clock::now();
    if (options_.paced) pace_.emplace(requests_, options_.speed, start);
    Status served = options_.in_order ? ServeInOrder(worker_of) : ServeConcurrently(worker_of);
    report_.wall_s = std::chrono::duration<double>(steady_clock::now() - start).count();
    if (!served) return served.error();
    if (Status finished = FinishWorkers(); !finished) return finished.error();
    return std::move(report_);
  }

 private:
  // Says which worker, and how it ended if it did.
  Error WorkerError(std::size_t index, const Error& error) {
    WorkerHandle& worker = *workers_[index];
    const std::string who = "worker " + std::to_string(index) + " (pid " + std::to_string(worker.process.pid()) + ")";
    if (error.code == Errc::kCancelled) return error;
    if (error.code == Errc::kUnavailable) {
      static_cast<void>(worker.process.WaitFor(milliseconds(500)));
      return MakeError(Errc::kSystem, who + " " + worker.process.Ending() + " in the middle of the replay");
    }
    return MakeError(Errc::kSystem, who + ": " + error.ToString());
  }

  Status StartWorkers() {
    Result<std::string> binary = OwnBinary();
    if (!binary) return binary.error();
    const std::uint64_t run = Mix(static_cast<std::uint64_t>(::getpid()), std::random_device{}());
    WorkerConfig config;
    config.model_id.Set(options_.model_id.empty() ? "kvctl-replay" : options_.model_id);
    // Of this run alone, so that runs on a shared kvmd don't feed each other.
    if (options_.model_id.empty()) config.revision.Set("run-" + BlockKey{run, 0}.ToHex().substr(0, 16));
    config.block_bytes = options_.block_bytes;
    config.block_tokens = options_.block_tokens;
    config.pool_blocks = options_.pool_blocks;
    config.policy = options_.policy;
    config.in_order = options_.in_order;
    config.publish_imported = options_.publish_imported;
    if (options_.prefill_takes_time) config.prefill_us_per_block = options_.prefill_us_per_token * options_.block_tokens;
    config.wait_computing_ms = options_.wait_computing_ms;
    config.join_ms = options_.join_ms;
    if (options_.prefill_us_per_token > 0) config.prefill_tokens_per_s = 1e6 / options_.prefill_us_per_token;
    // On the node's kvmd, copies of a model that only this run uses would evict the node's own
    // blocks from its host cache, and stay there.
    config.offload = options_.private_kvmd || !options_.model_id.empty();
    for (std::uint32_t i = 0; i < options_.workers; ++i) {
      Result<std::pair<Channel, Channel>> channels = Channel::Pair();
      if (!channels) return channels.error();
      const int fd = channels->second.fd();
      Result<ChildProcess> process = ChildProcess::Start(*binary, {kReplayWorkerRole, std::to_string(fd)}, {.keep_fd = fd});
      if (!process) return process.error();
      workers_.push_back(std::make_unique<WorkerHandle>(WorkerHandle{
          std::move(*process), std::move(channels->first), LonelyPool(options_.policy, options_.pool_blocks), {}, std::nullopt, {}}));
      config.device = memory_.DeviceOfWorker(i);
      const ReplayNode node = options_.nodes.empty() ? ReplayNode{socket_, ""} : options_.nodes[i % options_.nodes.size()];
      config.socket.Set(node.socket);
      config.mesh_socket.Set(node.mesh_socket);
      config.name.Set(ReplayRegionPrefix() + std::to_string(i));
      if (Status sent = workers_.back()->channel.SendStruct(config); !sent) return WorkerError(i, sent.error());
    }
    const auto deadline = steady_clock::now() + kWorkerStartTimeout;
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      Result<WorkerReady> ready = workers_[i]->channel.ReceiveStruct<WorkerReady>(deadline);
      if (!ready) return WorkerError(i, ready.error());
      if (!ready->failure.empty()) return WorkerError(i, MakeError(Errc::kSystem, ready->failure.Get()));
    }
    return {};
  }

  // Everybody has mapped everybody's pool before the first request, so that no block is missed for
  // want of a mapping.
  Status IntroduceWorkers() {
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      if (Status sent = workers_[i]->channel.SendStruct(MeetPeers{}); !sent) return WorkerError(i, sent.error());
    }
    const auto deadline = steady_clock::now() + kWorkerStartTimeout;
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      Result<PeersMet> met = workers_[i]->channel.ReceiveStruct<PeersMet>(deadline);
      if (!met) return WorkerError(i, met.error());
      if (!met->failure.empty()) return WorkerError(i, MakeError(Errc::kSystem, met->failure.Get()));
      if (!met->unmapped.empty()) report_.unmapped.push_back("worker " + std::to_string(i) + ": " + met->unmapped.Get());
    }
    return {};
  }

  Status Dispatch(std::size_t index, std::size_t request) {
    const std::vector<std::uint64_t>& ids = requests_[request].hash_ids;
    if (pace_) report_.late_ms.Add(std::chrono::duration<double, std::milli>(steady_clock::now() - pace_->Due(request)).count());
    Channel& channel = workers_[index]->channel;
    if (Status sent = channel.SendStruct(ServeRequest{ids.size(), false}); !sent) return WorkerError(index, sent.error());
    for (std::size_t at = 0; at < ids.size(); at += kIdsPerMessage) {
      const auto part = std::span(ids).subspan(at, std::min(kIdsPerMessage, ids.size() - at));
      if (Status sent = channel.Send(std::as_bytes(part)); !sent) return WorkerError(index, sent.error());
    }
    workers_[index]->in_flight = request;
    workers_[index]->answer_due = steady_clock::now() + kAnswerTimeout;
    return {};
  }

  Status Collect(std::size_t index) {
    WorkerHandle& worker = *workers_[index];
    Result<ServeReply> reply = worker.channel.ReceiveStruct<ServeReply>(worker.answer_due);
    if (!reply) return WorkerError(index, reply.error());
    if (!reply->failure.empty()) return WorkerError(index, MakeError(Errc::kSystem, reply->failure.Get()));
    Account(requests_[*worker.in_flight], *reply, worker.alone);
    worker.in_flight.reset();
    return {};
  }

  Status ServeInOrder(const std::vector<std::uint32_t>& worker_of) {
    for (std::size_t request = 0; request < requests_.size(); ++request) {
      if (Status due = WaitUntilDue(request); !due) return due;
      if (Status sent = Dispatch(worker_of[request], request); !sent) return sent;
      if (Status answered = Collect(worker_of[request]); !answered) return answered;
    }
    return {};
  }

  Status WaitUntilDue(std::size_t request) {
    while (pace_ && steady_clock::now() < pace_->Due(request)) {
      if (Interrupted()) return MakeError(Errc::kCancelled, "interrupted");
      std::this_thread::sleep_until(std::min(pace_->Due(request), steady_clock::now() + kWaitSlice));
    }
    return {};
  }

  Status ServeConcurrently(const std::vector<std::uint32_t>& worker_of) {
    for (std::size_t request = 0; request < requests_.size(); ++request) workers_[worker_of[request]]->waiting.push_back(request);
    served_.assign(requests_.size(), false);
    std::vector<pollfd> poll_fds;
    while (oldest_unserved_ < requests_.size()) {
      if (Interrupted()) return MakeError(Errc::kCancelled, "interrupted");
      if (Status fed = FeedIdle(); !fed) return fed;
      poll_fds.clear();
      for (const auto& worker : workers_) poll_fds.push_back({worker->in_flight ? worker->channel.fd() : -1, POLLIN, 0});
      if (::poll(poll_fds.data(), poll_fds.size(), WaitMs()) < 0 && errno != EINTR) return SystemError("poll");
      for (std::size_t i = 0; i < workers_.size(); ++i) {
        if (!workers_[i]->in_flight) continue;
        if (poll_fds[i].revents == 0) {
          if (steady_clock::now() < workers_[i]->answer_due) continue;
          return WorkerError(i, MakeError(Errc::kDeadlineExceeded, "no answer for a minute"));
        }
        const std::size_t request = *workers_[i]->in_flight;
        if (Status answered = Collect(i); !answered) return answered;
        served_[request] = true;
      }
      while (oldest_unserved_ < requests_.size() && served_[oldest_unserved_]) ++oldest_unserved_;
    }
    return {};
  }

  // Until the next request that an idle worker waits for is due, a slice at most.
  int WaitMs() const {
    auto wait = kWaitSlice;
    for (const auto& worker : workers_) {
      if (!pace_ || worker->in_flight || worker->waiting.empty()) continue;
      const auto left = std::chrono::ceil<milliseconds>(pace_->Due(worker->waiting.front()) - steady_clock::now());
      wait = std::clamp(left, milliseconds(0), wait);
    }
    return static_cast<int>(wait.count());
  }

  // A worker may run ahead of the others by a few requests only: in the trace's own time, a
  // conversation's next turn comes after the answer to the one before it. A paced replay has that
  // time.
  Status FeedIdle() {
    const std::size_t end = oldest_unserved_ + kWindowPerWorker * workers_.size();
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      WorkerHandle& worker = *workers_[i];
      if (worker.in_flight || worker.waiting.empty()) continue;
      const std::size_t request = worker.waiting.front();
      if (pace_ ? steady_clock::now() < pace_->Due(request) : request >= end) continue;
      worker.waiting.pop_front();
      if (Status sent = Dispatch(i, request); !sent) return sent;
    }
    return {};
  }

  void Account(const Request& request, const ServeReply& reply, LonelyPool& alone) {
    const std::uint64_t tokens_per_block = options_.block_tokens;
    const std::uint64_t hit = reply.blocks_local + reply.blocks_imported, hit_alone = alone.Serve(request);
    report_.requests++;
    report_.blocks_total += request.hash_ids.size();
    report_.blocks_local += reply.blocks_local;
    report_.blocks_imported += reply.blocks_imported;
    report_.blocks_joined += reply.blocks_joined;
    report_.blocks_hit_alone += hit_alone;
    report_.bytes_imported += reply.bytes_imported;
    report_.mismatched_blocks += reply.mismatched_blocks;
    report_.failed_imports += reply.failed_import_blocks > 0;
    report_.failed_import_blocks += reply.failed_import_blocks;
    report_.flush_failures += reply.flush_failed;
    const std::uint64_t saved = std::min(request.input_tokens, hit * tokens_per_block);
    report_.tokens_total += request.input_tokens;
    report_.tokens_saved += saved;
    const auto add_us = [](Samples& samples, bool happened, std::uint64_t ns) {
      if (happened) samples.Add(static_cast<double>(ns) / 1e3);
    };
    add_us(report_.keys_us, true, reply.keys_ns);
    add_us(report_.find_us, reply.looked_up, reply.find_ns);
    add_us(report_.join_us, reply.joined, reply.join_ns);
    add_us(report_.import_us, reply.imported, reply.import_ns);
    add_us(report_.publish_us, reply.published, reply.publish_ns);
    add_us(report_.flush_us, options_.in_order && reply.published, reply.flush_ns);
    // The last token of a prompt is computed in any case: its logits are the first output token.
    const auto prefill_ms = [&](std::uint64_t cached) {
      const std::uint64_t computed = std::max<std::uint64_t>(1, request.input_tokens - std::min(request.input_tokens, cached));
      return static_cast<double>(computed) * options_.prefill_us_per_token / 1e3;
    };
    report_.ttft_ms.Add(static_cast<double>(reply.keys_ns + reply.find_ns + reply.join_ns + reply.import_ns) / 1e6 + prefill_ms(saved));
    report_.ttft_alone_ms.Add(prefill_ms(hit_alone * tokens_per_block));
    progress_.Update(report_.requests,
                     "hit " + HumanPercent(static_cast<double>(report_.blocks_hit()), static_cast<double>(report_.blocks_total)));
  }

  Status FinishWorkers() {
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      if (Status sent = workers_[i]->channel.SendStruct(ServeRequest{0, true}); !sent) return WorkerError(i, sent.error());
    }
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      Result<WorkerSummary> summary = workers_[i]->channel.ReceiveStruct<WorkerSummary>(steady_clock::now() + kAnswerTimeout);
      if (!summary) return WorkerError(i, summary.error());
      report_.evictions += summary->evictions;
      report_.publishes_refused += summary->publishes_refused;
      report_.publishes_deferred += summary->publishes_deferred;
      report_.blocks_from_host_cache += summary->blocks_from_host_cache;
      report_.blocks_offloaded += summary->blocks_offloaded;
      report_.offloads_dropped += summary->offloads_dropped;
      report_.offloads_refused += summary->offloads_refused;
      report_.computing_waits += summary->computing_waits;
      report_.computing_waits_in_vain += summary->computing_waits_in_vain;
    }
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      if (!workers_[i]->process.WaitFor(kExitGrace)) return WorkerError(i, MakeError(Errc::kSystem, "does not end"));
      if (!workers_[i]->process.Succeeded()) return WorkerError(i, MakeError(Errc::kUnavailable, ""));
    }
    return {};
  }

  const ReplayOptions& options_;
  const PoolMemory& memory_;
  const std::string socket_;
  const std::vector<Request>& requests_;
  ProgressBar progress_;
  std::optional<Pace> pace_;
  std::vector<std::unique_ptr<WorkerHandle>> workers_;
  std::vector<bool> served_;
  std::size_t oldest_unserved_ = 0;
  ReplayReport report_;
};

}  // namespace

std::string ReplayRegionPrefix() { return "replay-" + std::to_string(::getpid()) + "-"; }

Result<ReplayReport> Replay(const ReplayOptions& options, const PoolMemory& memory, const std::string& socket,
                            const std::vector<Request>& requests) {
  return Coordinator(options, memory, socket, requests).Run();
}

}  // namespace kvm::ctl
