#include "client/computing_waits.h"

#include <algorithm>
#include <iterator>
#include <optional>

#include "client/connection/wait.h"

namespace kvm {
namespace {

constexpr std::chrono::milliseconds kPause{1};
// A client that has cost a wait for nothing costs the next one only after this time.
constexpr std::chrono::seconds kIgnoreFor{10};
constexpr std::size_t kMaxIgnored = 256;

}  // namespace

Match ComputingWaits::Find(const WaitOptions& options, const std::function<Match()>& find) {
  const Deadline deadline = After(options.bound);
  Match match = find();
  const std::size_t found = match.size();
  std::optional<std::uint64_t> waited_for;
  for (;;) {
    const std::optional<BeingComputed>& mark = match.being_computed();
    if (!mark || mark->own || mark->blocks < match.size() + options.min_blocks || std::chrono::steady_clock::now() >= deadline) break;
    if (!waited_for && Ignored(mark->client_id)) break;
    waited_for = mark->client_id;
    if (!Sleep(kPause)) break;
    match = find();
  }
  if (!waited_for) return match;
  const bool in_vain = match.size() <= found;
  stats_.computing_waits.fetch_add(1, std::memory_order_relaxed);
  if (in_vain) {
    stats_.computing_waits_in_vain.fetch_add(1, std::memory_order_relaxed);
    Ignore(*waited_for);
  }
  return match;
}

bool ComputingWaits::Ignored(std::uint64_t client) {
  MutexLock lock(mutex_);
  const auto until = ignored_.find(client);
  if (until == ignored_.end()) return false;
  if (std::chrono::steady_clock::now() < until->second) return true;
  ignored_.erase(until);
  return false;
}

void ComputingWaits::Ignore(std::uint64_t client) {
  MutexLock lock(mutex_);
  if (ignored_.size() >= kMaxIgnored)
    ignored_.erase(std::min_element(ignored_.begin(), ignored_.end(), [](const auto& a, const auto& b) { return a.second < b.second; }));
  ignored_[client] = After(kIgnoreFor);
}

}  // namespace kvm
