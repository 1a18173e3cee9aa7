// Seven clients that each misuse kvmd in a way of their own, in processes of their own, until they
// are killed: fuzz-like messages, a connection flood, a reader that never reads, a hoarder of
// descriptors, a hoarder of memory, half-sent frames, and one who asks for everything at once.
#pragma once

#include <array>
#include <string>

#include "tests/support/process/child_process.h"

namespace kvm::test {

inline constexpr std::array<const char*, 7> kHostileKinds = {"noise",          "flood",       "slow-reader", "descriptor-hoarder",
                                                             "memory-hoarder", "half-frames", "asker"};

// `uid`: the user that it becomes, if this process may; 0: it stays.
ChildProcess StartHostileClient(const std::string& socket, const std::string& kind, std::uint64_t seed, std::uint32_t uid);

}  // namespace kvm::test
