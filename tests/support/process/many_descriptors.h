// While the object lives, this process may have as many descriptors as its hard limit allows.
#pragma once

#include <sys/resource.h>

#include <cstddef>

#include "tests/catch.h"

namespace kvm::test {

class ManyDescriptors {
 public:
  ManyDescriptors() {
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &before_) == 0);
    const rlimit most{before_.rlim_max, before_.rlim_max};
    REQUIRE(::setrlimit(RLIMIT_NOFILE, &most) == 0);
  }
  ~ManyDescriptors() { ::setrlimit(RLIMIT_NOFILE, &before_); }
  ManyDescriptors(const ManyDescriptors&) = delete;
  ManyDescriptors& operator=(const ManyDescriptors&) = delete;

  std::size_t most() const noexcept { return before_.rlim_max; }

 private:
  rlimit before_{};
};

}  // namespace kvm::test
