// A thread that no other thread waits for.
#pragma once

#include <pthread.h>

#include <csignal>
#include <exception>
#include <thread>
#include <utility>

namespace kvm {

// Calls `run` in a thread of its own, which takes no signals: they are for the process's main
// thread. False: there is no thread, or no memory, for it.
template <class Run>
[[nodiscard]] bool StartDetached(Run&& run) noexcept {
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  bool started = true;
  try {
    std::thread(std::forward<Run>(run)).detach();
  } catch (const std::exception&) {
    started = false;
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started;
}

}  // namespace kvm
