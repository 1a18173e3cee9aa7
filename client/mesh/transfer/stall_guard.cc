#include "client/mesh/transfer/stall_guard.h"

#include <algorithm>
#include <new>

namespace kvm::mesh {

using std::chrono::steady_clock;

Time StallGuard::Next() const noexcept { return std::min(limits_.deadline, progressed_at_ + limits_.stall); }

void StallGuard::Begin(Limits limits) {
  ++operation_;
  limits_ = limits;
  progressed_at_ = steady_clock::now();
  counted_ = 0;
  Wait();
}

void StallGuard::Wait() {
  timer_.expires_at(Next());
  timer_.async_wait([self = shared_from_this(), operation = operation_](boost::system::error_code error) {
    if (error || self->operation_ != operation) return;
    const Time now = steady_clock::now();
    self->cause_ = now < self->limits_.deadline ? "no progress" : "too late";
    // Progress moves the limit without touching the timer, so the timer may be early.
    if (now < self->Next()) {
      try {
        self->cause_ = nullptr;
        return self->Wait();
      } catch (const std::bad_alloc&) {
        self->cause_ = "no memory for a timer";
      }
    }
    if (self->close_) self->close_();
  });
}

void StallGuard::Progress(std::size_t moved) noexcept {
  if (moved < counted_ + Limits::kProgressBytes) return;
  counted_ = moved;
  progressed_at_ = steady_clock::now();
}

void StallGuard::End() noexcept {
  ++operation_;
  timer_.cancel();
}

void StallGuard::Stop() noexcept {
  End();
  close_ = nullptr;
}

}  // namespace kvm::mesh
