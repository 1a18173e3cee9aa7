#include "daemon/server/fair_turns.h"

#include <algorithm>
#include <utility>

#include "daemon/system/log.h"

namespace kvm::daemon {
namespace {

constexpr auto kTurn = static_cast<std::int64_t>(kSliceUnits);
// Debts are forgotten with their users, once so many are in debt and have nothing to do.
constexpr std::size_t kMostUsers = 4096;

}  // namespace

void FairTurns::Add(std::uint32_t user, Task task) {
  if (users_.size() >= kMostUsers)
    std::erase_if(users_, [](const auto& entry) { return entry.second.tasks.empty() && !entry.second.in_turn; });
  User& its = users_[user];
  if (its.tasks.empty() && !its.in_turn) order_.push_back(user);
  its.tasks.push_back(std::move(task));
  if (waiting_++ == 0) wake_();
}

bool FairTurns::Run() {
  while (!order_.empty()) {
    const std::uint32_t id = order_.front();
    order_.pop_front();
    User& user = users_[id];
    user.credit = std::min(user.credit + kTurn, kTurn);
    const bool pays = user.credit > 0;
    user.in_turn = true;
    if (pays) TakeTurn(id, user);
    user.in_turn = false;
    if (!user.tasks.empty()) {
      order_.push_back(id);
    } else if (user.credit >= 0) {
      users_.erase(id);
    }
    if (pays) break;
  }
  return waiting_ > 0;
}

void FairTurns::TakeTurn(std::uint32_t id, User& user) {
  const LogScope scope(id);
  // Each of its tasks has a part of the turn before one of them has a second.
  while (!user.tasks.empty() && user.credit > 0) {
    Task task = std::move(user.tasks.front());
    user.tasks.pop_front();
    --waiting_;
    const WorkUnits before = WorkMeter::spent();
    const bool more = task(WorkBudget(static_cast<WorkUnits>(user.credit)));
    user.credit -= static_cast<std::int64_t>(WorkMeter::spent() - before + 1);
    if (!more) continue;
    user.tasks.push_back(std::move(task));
    ++waiting_;
  }
}

std::size_t FairTurns::waiting_of(std::uint32_t user) const {
  const auto found = users_.find(user);
  return found == users_.end() ? 0 : found->second.tasks.size();
}

}  // namespace kvm::daemon
