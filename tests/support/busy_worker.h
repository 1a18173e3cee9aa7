// Workers that keep busy in processes of their own until told to stop, checking every byte they import.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/block_key.h"
#include "tests/support/child_process.h"

namespace kvm::test {

// Does everything a worker can do, at random: publishes prompts that others publish too, imports,
// registers and unregisters regions, reconnects. Ends with exit code 0 when its input closes, with
// kBusyWorkerFoundWrongBytes as soon as an import that was called valid, or a block that came with an adopted region,
// has wrong bytes. `adopt`: goes on in the region of a dead worker of the same name, if there is one.
ChildProcess StartBusyWorker(const std::string& socket, const std::string& name, std::uint64_t seed, bool adopt = false);
inline constexpr int kBusyWorkerFoundWrongBytes = 3;

// Rewrites and publishes the blocks of its region as fast as it can, keys from a set of its own.
ChildProcess StartRecycler(const std::string& socket, const std::string& name);
std::vector<BlockKey> RecyclerKeys(const std::string& name);
inline constexpr std::uint64_t kRecyclerBlockBytes = 16 * 1024;

// Imports keys of the recyclers `names`, one at a time, through libkvclient. Prints "VALID STALE WRONG" and ends
// after `rounds` lookups that found something.
ChildProcess StartStressImporter(const std::string& socket, const std::string& name, const std::vector<std::string>& recyclers, int rounds);

// Closes the process's input and waits for its end; empty if it does not end.
std::optional<ProcessEnd> Finish(ChildProcess& process);

}  // namespace kvm::test
