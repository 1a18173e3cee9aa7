// JobReaper: copies whose ticket is destroyed before they end. No call hangs, and no memory is
// freed while a copy may still write it.
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>

#include "cuda/import/job_reaper.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;

// What a test can see of a job, and decide about it.
struct Watched {
  std::atomic<bool> copy_ended{false}, destroyed{false};
  std::atomic<unsigned> looks{0};
};

// A copy that ends when the test says so, as one does on a stream that is held up.
class SlowJob final : public ImportJob {
 public:
  explicit SlowJob(std::shared_ptr<Watched> watched) : watched_(std::move(watched)) {}
  ~SlowJob() override { watched_->destroyed = true; }
  bool Done() noexcept override {
    ++watched_->looks;
    return watched_->copy_ended;
  }
  bool Wait(SteadyTime deadline) noexcept override {
    while (!Done()) {
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::sleep_for(1ms);
    }
    return true;
  }
  std::span<const BlockStatus> statuses() const noexcept override { return statuses_; }

 private:
  const std::shared_ptr<Watched> watched_;
  const BlockStatus statuses_[1] = {BlockStatus::kValid};
};

bool Eventually(const std::atomic<bool>& happened) {
  const auto end = std::chrono::steady_clock::now() + 10s;
  while (!happened && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(1ms);
  return happened;
}

}  // namespace

TEST_CASE("Job reaper: a copy that does not end in time is kept until it has ended, and the caller returns", "[unit]") {
  const auto watched = std::make_shared<Watched>();
  EndedByReaper(std::make_unique<SlowJob>(watched), 5ms).reset();
  CHECK(JobReaper::Get().waiting() == 1);
  CHECK_FALSE(watched->destroyed);
  const unsigned looks = watched->looks;
  std::this_thread::sleep_for(200ms);
  CHECK_FALSE(watched->destroyed);
  CHECK(watched->looks > looks);  // it is watched,
  // The reaper sleeps between two looks: a busy loop would look some millions of times
  CHECK(watched->looks < looks + 200);
  watched->copy_ended = true;
  CHECK(Eventually(watched->destroyed));
  while (JobReaper::Get().waiting() > 0) std::this_thread::sleep_for(1ms);
}

TEST_CASE("Job reaper: several copies end in any order", "[unit]") {
  std::shared_ptr<Watched> watched[3];
  for (auto& each : watched) {
    each = std::make_shared<Watched>();
    EndedByReaper(std::make_unique<SlowJob>(each), 0ms).reset();
  }
  for (const std::size_t next : {2u, 0u, 1u}) {
    CHECK_FALSE(watched[next]->destroyed);
    watched[next]->copy_ended = true;
    CHECK(Eventually(watched[next]->destroyed));
  }
}

TEST_CASE("Job reaper: a copy that ends in time is destroyed by the caller", "[unit]") {
  const auto watched = std::make_shared<Watched>();
  std::unique_ptr<ImportJob> job = EndedByReaper(std::make_unique<SlowJob>(watched), 10s);
  CHECK_FALSE(job->Done());
  CHECK_FALSE(job->Wait(std::chrono::steady_clock::now()));
  watched->copy_ended = true;
  CHECK(job->Done());
  REQUIRE(job->statuses().size() == 1);
  CHECK(job->event() == nullptr);
  job.reset();
  CHECK(watched->destroyed);
}
