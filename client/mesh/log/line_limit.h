// LineLimit: one line in each `pause` at most, of an event that may occur at any rate. Not
// thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

namespace kvm::mesh {

class LineLimit {
 public:
  using Clock = std::chrono::steady_clock;

  explicit LineLimit(Clock::duration pause) noexcept : pause_(pause) {}

  // To be called for each event. How many were left out since the last line; nullopt: this one is
  // left out, too.
  std::optional<std::uint64_t> Take() noexcept { return Take(Clock::now()); }
  std::optional<std::uint64_t> Take(Clock::time_point now) noexcept {
    if (last_ && now - *last_ < pause_) {
      ++left_out_;
      return std::nullopt;
    }
    last_ = now;
    return std::exchange(left_out_, 0);
  }

 private:
  const Clock::duration pause_;
  std::optional<Clock::time_point> last_;
  std::uint64_t left_out_ = 0;
};

}  // namespace kvm::mesh
