// Waiting for what another thread or process does: looks again and again, up to a deadline.
#pragma once

#include <chrono>
#include <thread>

namespace kvm::test {

inline bool SleepMs(int ms) {  // true
  std::this_thread::sleep_for(std::chrono::milliseconds(ms));
  return true;
}

// Calls `done` until it is true or `timeout` has passed; its last answer.
template <class Done>
bool Eventually(Done done, std::chrono::milliseconds timeout = std::chrono::seconds(10)) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  while (!done()) {
    if (std::chrono::steady_clock::now() >= deadline) return done();
    SleepMs(2);
  }
  return true;
}

}  // namespace kvm::test
