// InterruptScope: ends the waits of one thread early, for Ctrl-C and for cancelled requests.
//
// An interrupted call behaves as if its deadline had passed at that moment: it returns kDeadlineExceeded and leaves behind
// what a passed deadline does (a region whose registration was not answered is unregistered when the answer comes, and so on).
#pragma once

#include <functional>

#include "kvclient/types.h"

namespace kvm {

// While it lives, calls to libkvclient that this thread makes and that wait ask `interrupted` about every 50 ms, on this
// thread, with no lock of libkvclient held. Once that has returned true it is not asked again, and every wait of this
// thread ends at once, destructors' too. Calls that do not wait are not affected, and copies go on.
//
// Scopes nest: the innermost counts, and none while `interrupted` runs, which may call libkvclient itself and must not
// throw. A scope belongs to the thread that made it and must end there, in reverse order.
class InterruptScope {
 public:
  explicit InterruptScope(std::function<bool()> interrupted);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  // Whether it has returned true. Any calls made meanwhile may nevertheless have succeeded.
  bool interrupted() const noexcept { return stopped_; }

  // libkvclient's own (client/connection/wait.h): the innermost scope of this thread, null: none.
  static InterruptScope* Current() noexcept;
  // Asks, if it is time to; then whether waits shall end.
  bool Ask();
  Deadline next_question() const noexcept { return next_question_; }

 private:
  std::function<bool()> ask_;
  InterruptScope* outer_;
  Deadline next_question_;
  bool stopped_ = false;
};

}  // namespace kvm
