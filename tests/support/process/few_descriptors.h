// While the object lives, this process has few descriptors left.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "proto/base/unique_fd.h"
#include "tests/catch.h"

namespace kvm::test {

class FewDescriptors {
 public:
  explicit FewDescriptors(int left) {
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
    int highest = 2;
    for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
      highest = std::max(highest, std::atoi(entry.path().filename().c_str()));
    // Fills the gaps below.
    for (;;) {
      UniqueFd filler(::open("/dev/null", O_RDONLY | O_CLOEXEC));
      REQUIRE(filler);
      if (filler.get() > highest) break;
      fillers_.push_back(std::move(filler));
    }
    limit_ = static_cast<rlim_t>(highest + 1 + left);
    const rlimit few{limit_, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
  }
  ~FewDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  FewDescriptors(const FewDescriptors&) = delete;
  FewDescriptors& operator=(const FewDescriptors&) = delete;

  // The text by which kvmd and its clients name the limit.
  std::string Says() const { return "out of descriptors (limit " + std::to_string(limit_) + ")"; }

 private:
  rlimit before_{};
  rlim_t limit_ = 0;
  std::vector<UniqueFd> fillers_;
};

}  // namespace kvm::test
