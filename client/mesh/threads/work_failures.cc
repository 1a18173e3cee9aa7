#include "client/mesh/threads/work_failures.h"

#include <iostream>

namespace kvm::mesh {
namespace {

constexpr std::chrono::minutes kBetweenLines{1};

std::string TextOf(const std::exception_ptr& failed) {
  try {
    std::rethrow_exception(failed);
  } catch (const std::exception& exception) {
    return exception.what();
  } catch (...) {
    return "an exception of unknown kind";
  }
}

}  // namespace

Error WorkFailures::Note(std::string_view what, const std::exception_ptr& failed) {
  ++count_;
  last_ = std::string(what) + ": " + TextOf(failed);
  const auto now = std::chrono::steady_clock::now();
  if (told_ != std::chrono::steady_clock::time_point() && now - told_ < kBetweenLines) {
    ++untold_;
  } else {
    const std::string others = untold_ == 0 ? "" : "; " + std::to_string(untold_) + " others since the last such line";
    std::cerr << "kvmd-mesh: work has failed: " + last_ + others + "\n" << std::flush;
    told_ = now;
    untold_ = 0;
  }
  return MakeError(Errc::kResourceExhausted, last_);
}

}  // namespace kvm::mesh
