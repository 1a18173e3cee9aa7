// The machine that a simulation runs on: its clock, its random numbers, and what it lacks.
//
// machine.cc defines the functions of the C library by which kvmd asks the kernel for time, random
// numbers, memory (how much it has, and allocations) and descriptors. While a Machine exists they
// answer as it says, otherwise as the kernel does. One Machine at a time, and one thread.
#pragma once

#include <chrono>
#include <cstdint>

#include "tests/support/data/random.h"

namespace kvm::simulation {

class Machine {
 public:
  explicit Machine(std::uint64_t seed);
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine();

  static Machine* Current() noexcept;

  void Advance(std::chrono::nanoseconds by) noexcept { now_ns_ += static_cast<std::uint64_t>(by.count()); }
  std::uint64_t now_ns() const noexcept { return now_ns_; }
  // What kvmd reads.
  std::chrono::steady_clock::time_point now() const noexcept { return std::chrono::steady_clock::now(); }
  std::uint64_t Draw() noexcept { return random_.Next(); }

  bool lacks_memory = false;       // no memfd grows, and none is made
  bool lacks_descriptors = false;  // no descriptor is made
  std::uint64_t refusals = 0;      // how often that was met

 private:
  std::uint64_t now_ns_ = std::uint64_t{1000} * 1'000'000'000;
  test::Random random_;
};

// What the simulation itself does meanwhile meets no lack.
class Plenty {
 public:
  explicit Plenty(Machine& machine) noexcept : machine_(machine), memory_(machine.lacks_memory), descriptors_(machine.lacks_descriptors) {
    machine.lacks_memory = machine.lacks_descriptors = false;
  }
  Plenty(const Plenty&) = delete;
  Plenty& operator=(const Plenty&) = delete;
  ~Plenty() {
    machine_.lacks_memory = memory_;
    machine_.lacks_descriptors = descriptors_;
  }

 private:
  Machine& machine_;
  const bool memory_, descriptors_;
};

}  // namespace kvm::simulation
