// simulate [--seed N] [--seconds N] [--steps N] [--random]: runs seeds one after the other, from N
// on or from one of the clock's, and prints what was counted and how many steps a second that were.
// Ends with status 1 and the last steps at the first seed that fails.
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string>

#include "tests/simulation/simulation.h"

int main(int argc, char** argv) {
  using kvm::simulation::Counted;
  std::uint64_t seed = 1, time_s = 10, steps = 20'000;
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    const char* const value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (option == "--random") {
      seed = static_cast<std::uint64_t>(std::chrono::system_clock::now().time_since_epoch().count()) % 1'000'000'000;
    } else if (value != nullptr && (option == "--seed" || option == "--seconds" || option == "--steps")) {
      (option == "--seed" ? seed : option == "--seconds" ? time_s : steps) = std::strtoull(value, nullptr, 10);
      ++i;
    } else {
      std::cerr << "simulate [--seed N | --random] [--seconds N] [--steps N]\n";
      return 2;
    }
  }
  const auto began = std::chrono::steady_clock::now();
  const auto passed_s = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(); };
  Counted sum;
  const std::uint64_t first = seed;
  do {
    try {
      sum.Add(kvm::simulation::RunSeed(seed, steps));
    } catch (const kvm::simulation::Violation& violation) {
      std::cout << "FAILED " << violation.what() << "repeat it: simulate --seconds 0 --steps " << steps << " --seed " << seed << std::endl;
      return 1;
    }
    ++seed;
  } while (passed_s() < static_cast<double>(time_s));
  std::cout << "seeds " << first << " to " << seed - 1 << ": " << sum.steps << " steps, " << sum.checks << " times all checks, "
            << static_cast<std::uint64_t>(static_cast<double>(sum.steps) / passed_s()) << " steps/s\n"
            << sum.Text() << std::endl;
}
