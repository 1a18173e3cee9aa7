// WorkFailures: counts work on threads that has ended with an exception, which is a lack of memory
// if it is anything, and logs it, once a minute at most. Of the io_context's thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <string>
#include <string_view>

#include "client/mesh/log/line_limit.h"
#include "kvm/error.h"

namespace kvm::mesh {

class WorkFailures {
 public:
  // `what`: the work, for people. Returns the error that the work has ended with:
  // kResourceExhausted.
  Error Note(std::string_view what, const std::exception_ptr& failed);
  std::uint64_t count() const noexcept { return count_; }
  const std::string& last() const noexcept { return last_; }  // for people; empty: none

 private:
  std::uint64_t count_ = 0;
  std::string last_;
  LineLimit lines_{std::chrono::minutes(1)};
};

}  // namespace kvm::mesh
