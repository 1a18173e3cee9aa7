#include "cuda/import/job_reaper.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>

namespace kvm {
namespace {

constexpr std::chrono::milliseconds kFirstPause{1}, kLongestPause{50};

class HandedOn final : public ImportJob {
 public:
  HandedOn(std::unique_ptr<ImportJob> job, std::chrono::milliseconds patience) : job_(std::move(job)), patience_(patience) {}
  ~HandedOn() override {
    if (!job_->Wait(std::chrono::steady_clock::now() + patience_)) JobReaper::Get().Take(std::move(job_));
  }
  bool Done() noexcept override { return job_->Done(); }
  bool Wait(SteadyTime deadline) noexcept override { return job_->Wait(deadline); }
  void* event() const noexcept override { return job_->event(); }
  std::span<const BlockStatus> statuses() const noexcept override { return job_->statuses(); }

 private:
  std::unique_ptr<ImportJob> job_;
  const std::chrono::milliseconds patience_;
};

}  // namespace

JobReaper& JobReaper::Get() {
  static JobReaper& reaper = *new JobReaper();
  return reaper;
}

void JobReaper::Take(std::unique_ptr<ImportJob> job) noexcept {
  ImportJob* const raw = job.release();
  try {
    MutexLock lock(mutex_);
    if (!running_) std::thread([this] { Run(); }).detach();
    running_ = true;
    jobs_.emplace_back(raw);
    ++waiting_;
    taken_.notify_all();
  } catch (const std::exception&) {
    return;  // kept for ever
  }
}

std::size_t JobReaper::waiting() const {
  MutexLock lock(mutex_);
  return waiting_;
}

void JobReaper::Run() {
  std::list<std::unique_ptr<ImportJob>> looked_at;  // takes no memory
  std::chrono::milliseconds pause = kFirstPause;
  MutexLock lock(mutex_);
  for (;;) {
    if (looked_at.empty()) taken_.wait(lock.native(), [this]() KVM_REQUIRES(mutex_) { return !jobs_.empty(); });
    if (!jobs_.empty()) pause = kFirstPause;
    looked_at.splice(looked_at.end(), jobs_);
    lock.Unlock();
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongestPause);
    const std::size_t ended = std::erase_if(looked_at, [](const std::unique_ptr<ImportJob>& job) { return job->Done(); });
    lock.Lock();
    waiting_ -= ended;
  }
}

std::unique_ptr<ImportJob> EndedByReaper(std::unique_ptr<ImportJob> job, std::chrono::milliseconds patience) {
  return std::make_unique<HandedOn>(std::move(job), patience);
}

}  // namespace kvm
