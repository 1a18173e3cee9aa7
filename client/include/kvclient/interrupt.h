// InterruptScope: ends the waits of one thread early, for Ctrl-C and for cancelled requests.
//
// An interrupted call behaves as if its deadline had passed at that moment: it returns
// kDeadlineExceeded, with the same effects as a passed deadline (a region whose registration was
// not answered is unregistered when the answer comes, and so on).
#pragma once

#include <functional>

#include "kvclient/types.h"

namespace kvm {

// While a scope lives, every call to libkvclient that waits on this thread calls `interrupted`
// about every 50 ms, on this thread, with no lock of libkvclient held. Once `interrupted` has
// returned true it is not called again, and every wait of this thread ends at once, including waits
// in destructors. Calls that do not wait are not affected, and copies go on.
//
// Scopes nest: only the innermost is asked, and none while `interrupted` runs. `interrupted` may
// call libkvclient, and must not throw. A scope belongs to the thread that made it and must end
// there, in reverse order.
class InterruptScope {
 public:
  explicit InterruptScope(std::function<bool()> interrupted);  // begins
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  // Whether `interrupted` has returned true. Calls that were made meanwhile may have succeeded
  // nevertheless.
  bool interrupted() const noexcept { return stopped_; }

  // libkvclient's own (client/connection/wait.h): the innermost scope of this thread, null: none.
  static InterruptScope* Current() noexcept;
  // Calls `interrupted` if 50 ms have passed since the last call; returns whether waits are to end.
  bool Ask();
  // When Ask calls it next.
  Deadline next_question() const noexcept { return next_question_; }

 private:
  std::function<bool()> ask_;
  InterruptScope* outer_;
  Deadline next_question_;
  bool stopped_ = false;
};

}  // namespace kvm
