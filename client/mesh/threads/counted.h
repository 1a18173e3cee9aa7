// Counted: counts a coroutine while it runs, however it ends.
#pragma once

#include <cstddef>

namespace kvm::mesh {

class Counted {
 public:
  explicit Counted(std::size_t& count) noexcept : count_(count) { ++count_; }
  ~Counted() { --count_; }
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;

 private:
  std::size_t& count_;
};

}  // namespace kvm::mesh
