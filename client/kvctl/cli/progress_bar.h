// A progress bar on stderr, if that is a terminal; nothing otherwise.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace kvm::ctl {

class ProgressBar {
 public:
  ProgressBar(std::string what, std::size_t total);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Redraws at most ten times a second.
  void Update(std::size_t done, const std::string& note);

 private:
  const std::string what_;
  const std::size_t total_;
  const bool visible_;
  std::chrono::steady_clock::time_point next_draw_{};
};

}  // namespace kvm::ctl
