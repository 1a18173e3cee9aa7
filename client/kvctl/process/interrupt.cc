#include "client/kvctl/process/interrupt.h"

#include <atomic>
#include <csignal>

namespace kvm::ctl {
namespace {

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free, "set in a signal handler");

void OnSignal(int) { interrupted.store(true, std::memory_order_relaxed); }

}  // namespace

void CatchInterrupts() {
  struct sigaction action {};
  action.sa_handler = OnSignal;
  // Without SA_RESTART, so that a waiting poll returns. With SA_RESETHAND, so that a second Ctrl-C
  // ends the process.
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  // SIGHUP of a closing terminal, unless it is ignored, as under nohup.
  struct sigaction before {};
  if (::sigaction(SIGHUP, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) ::sigaction(SIGHUP, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

bool Interrupted() noexcept { return interrupted.load(std::memory_order_relaxed); }

}  // namespace kvm::ctl
