// FairTurns: which user's messages are worked on next, and for how long.
//
// A part that has something for kvmd to do (a connection that can be read from, one whose message
// takes several slices, a new connection) adds a task; Server runs one turn after the other between
// its other events. Users take turns, not connections: a user with 64 connections waits as long as
// one with a single one. A turn is a slice of work (daemon/system/work_meter.h), whatever it is
// spent on. Owns the tasks until they are done.
//
// Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995): each turn adds a slice to the user's
// credit, and what its tasks do is taken off. A task that can't stop in time leaves the user in
// debt, which it pays by passing on its next turns; while no other user waits, it does not wait
// either.
//
// Single-threaded. Its memory is bounded by what its users may have waiting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>

#include "daemon/system/work_meter.h"

namespace kvm::daemon {

class FairTurns {
 public:
  // Works until it has nothing left to do now, or until the budget is used up: true if there is
  // more to do at once.
  using Task = std::function<bool(const WorkBudget&)>;

  // `wake`: called when there is a task after there was none. Runs later, never from inside.
  explicit FairTurns(std::function<void()> wake) : wake_(std::move(wake)) {}

  void Add(std::uint32_t user, Task task);
  // One user's turn. True: there is more to do.
  bool Run();

  std::size_t waiting() const noexcept { return waiting_; }  // tasks
  std::size_t waiting_of(std::uint32_t user) const;

 private:
  struct User {
    std::deque<Task> tasks;
    std::int64_t credit = 0;
    bool in_turn = false;  // its tasks may add others
  };

  void TakeTurn(std::uint32_t id, User& user);

  const std::function<void()> wake_;
  std::map<std::uint32_t, User> users_;  // those with tasks, or in debt
  std::deque<std::uint32_t> order_;      // of those with tasks
  std::size_t waiting_ = 0;
};

}  // namespace kvm::daemon
