#include "client/kvctl/cli/status_history.h"

#include <utility>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

// A counter that begins anew counts from 0.
std::uint64_t More(std::uint64_t before, std::uint64_t now) { return now >= before ? now - before : now; }

// More events of one kind than this at once are one line.
constexpr std::size_t kMostOfAKind = 6;

}  // namespace

std::string NameOfWorker(const kvmwire::ClientStatus& client) {
  return Printable(client.name()) + " (pid " + std::to_string(client.pid()) + ", " + Printable(client.domain()) + ")";
}

StatusHistory::Sums StatusHistory::SumsOf(const kvmwire::StatusReply& status) {
  Sums sums;
  sums.started_ms = status.started_ms();
  sums.host_cache_bytes = status.host_cache().bytes();
  for (const kvmwire::DomainStatus& domain : status.domains()) {
    const kvmwire::StatsReport& totals = domain.client_totals();
    sums.keys_looked_up += totals.keys_looked_up();
    sums.keys_found += totals.keys_matched();
    sums.imported_blocks += totals.blocks_imported();
    sums.imported_bytes += totals.bytes_imported();
    sums.failed_blocks += totals.blocks_failed();
    sums.published_blocks += totals.blocks_published();
    for (std::size_t i = 0; i < kMissReasons.size(); ++i) sums.misses[i] += (totals.*kMissReasons[i].count)();
    sums.evicted += domain.counters().evicted();
    sums.refused += domain.counters().refused_full();
    sums.orphans += domain.orphans();
  }
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    if (client.role() == kvmwire::WORKER) sums.workers[client.client_id()] = NameOfWorker(client);
  }
  return sums;
}

void StatusHistory::Say(std::string text, Time at) {
  events_.push_front({at, std::move(text)});
  ++events_said_;
  if (events_.size() > kMostEvents) events_.pop_back();
}

void StatusHistory::NoteEvents(const Sums& now, Time at) {
  if (away_) Say("kvmd answers again", at);
  if (now.started_ms != told_.started_ms) return Say("kvmd was restarted", at);
  const auto workers = [&](const auto& from, const auto& without, const char* what, const char* of_many) {
    std::size_t count = 0;
    for (const auto& [id, name] : from) {
      if (!without.contains(id) && ++count <= kMostOfAKind) Say("worker " + name + what, at);
    }
    if (count > kMostOfAKind) Say(HumanCount(count - kMostOfAKind) + " more workers " + of_many, at);
  };
  workers(now.workers, told_.workers, " has joined", "have joined");
  workers(told_.workers, now.workers, " has left", "have left");
  if (now.orphans > told_.orphans) Say("memory of " + HumanCount(now.orphans - told_.orphans) + " regions was left by dead workers", at);
  if (now.orphans < told_.orphans)
    Say("memory of " + HumanCount(told_.orphans - now.orphans) + " regions of dead workers was taken over or freed", at);
  if (now.host_cache_bytes > told_.host_cache_bytes) Say("the host cache has grown to " + HumanBytes(now.host_cache_bytes), at);
  if (now.host_cache_bytes < told_.host_cache_bytes) Say("the host cache has shrunk to " + HumanBytes(now.host_cache_bytes), at);
  if (now.evicted > told_.evicted && told_.evicted == 0) Say("the index is full: it has begun to evict blocks", at);
  if (now.refused > told_.refused && told_.refused == 0) Say("the index is full: it has begun to refuse blocks", at);
}

void StatusHistory::Add(const kvmwire::StatusReply& status, Time now) {
  Sums sums = SumsOf(status);
  if (seen_) NoteEvents(sums, now);
  away_ = false;
  told_ = sums;
  const bool again = seen_ && sums.started_ms == last_.started_ms;
  if (again && now < since_ + kShortest && now >= since_) return;
  if (again && now > since_) {
    Interval interval{.end = now,
                      .seconds = std::chrono::duration<double>(now - since_).count(),
                      .keys_looked_up = More(last_.keys_looked_up, sums.keys_looked_up),
                      .keys_found = More(last_.keys_found, sums.keys_found),
                      .imported_blocks = More(last_.imported_blocks, sums.imported_blocks),
                      .imported_bytes = More(last_.imported_bytes, sums.imported_bytes),
                      .failed_blocks = More(last_.failed_blocks, sums.failed_blocks),
                      .published_blocks = More(last_.published_blocks, sums.published_blocks)};
    for (std::size_t i = 0; i < kMissReasons.size(); ++i) interval.misses[i] = More(last_.misses[i], sums.misses[i]);
    intervals_.push_back(interval);
    if (intervals_.size() > kMostIntervals) intervals_.pop_front();
  }
  last_ = std::move(sums);
  since_ = now;
  seen_ = true;
}

void StatusHistory::NoteAway(const std::string& why, Time now) {
  if (!away_) Say("kvmd does not answer: " + why, now);
  away_ = true;
}

}  // namespace kvm::ctl
