#include "client/kvctl/cli/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace kvm::ctl {
namespace {

constexpr std::size_t kWidth = 30;
constexpr const char* kEraseLine = "\r\033[K";

}  // namespace

ProgressBar::ProgressBar(std::string what, std::size_t total)
    : what_(std::move(what)), total_(std::max<std::size_t>(total, 1)), visible_(::isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (visible_) std::fputs(kEraseLine, stderr);
}

void ProgressBar::Update(std::size_t done, const std::string& note) {
  if (!visible_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_draw_ && done < total_) return;
  next_draw_ = now + std::chrono::milliseconds(100);
  const std::size_t filled = kWidth * std::min(done, total_) / total_;
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "%s%s [%s] %3zu %%  %s", kEraseLine, what_.c_str(), bar.c_str(), 100 * done / total_, note.c_str());
  std::fflush(stderr);
}

}  // namespace kvm::ctl
