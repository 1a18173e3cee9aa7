#include "kvclient/interrupt.h"

#include <utility>

namespace kvm {
namespace {

constexpr std::chrono::milliseconds kBetweenQuestions{50};
thread_local InterruptScope* current = nullptr;

}  // namespace

InterruptScope::InterruptScope(std::function<bool()> interrupted)
    : ask_(std::move(interrupted)), outer_(std::exchange(current, this)), next_question_(After(kBetweenQuestions)) {}

InterruptScope::~InterruptScope() { current = outer_; }

InterruptScope* InterruptScope::Current() noexcept { return current; }

bool InterruptScope::Ask() {
  if (stopped_ || std::chrono::steady_clock::now() < next_question_) return stopped_;
  InterruptScope* const asking = std::exchange(current, nullptr);
  stopped_ = ask_();
  current = asking;
  next_question_ = After(kBetweenQuestions);
  return stopped_;
}

}  // namespace kvm
