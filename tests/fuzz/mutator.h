// Seeded mutations of well-formed inputs, for the smoke run of the fuzz targets in the normal
// suite.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/data/random.h"

namespace kvm::fuzz {

// A copy of one of `seeds` with one to eight random changes; now and then the seed itself or noise.
std::string Mutate(const std::vector<std::string>& seeds, test::Random& random);

// How many rounds to search: KVM_FUZZ_ROUNDS of the environment, else `usual`.
std::uint64_t Rounds(std::uint64_t usual);

}  // namespace kvm::fuzz
