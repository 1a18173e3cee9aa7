// Workers that work in processes of their own until they are told to stop, and check every byte
// that they import.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kvm/block_key.h"
#include "tests/support/process/child_process.h"

namespace kvm::test {

// Makes random calls of all kinds: publishes prompts that others publish too, imports,
// registers and unregisters regions, reconnects. Ends with exit code 0 when its input closes, with
// kBusyWorkerFoundWrongBytes as soon as an import that was called valid, or a block that came with
// an adopted region, has wrong bytes. `adopt`: adopts the region of a dead worker of the same name,
// if there is one.
ChildProcess StartBusyWorker(const std::string& socket, const std::string& name, std::uint64_t seed, bool adopt = false);
inline constexpr int kBusyWorkerFoundWrongBytes = 3;

// Busy workers that are killed and replaced.
class BusyCrew {
 public:
  // The worker that replaces a killed one: one with a new name, or one that adopts the killed one's
  // region.
  enum class Successor { kStranger, kAdopter };
  BusyCrew(std::string socket, std::uint64_t seed, std::size_t workers, Successor successor = Successor::kStranger);

  std::size_t size() const noexcept { return workers_.size(); }
  ChildProcess& operator[](std::size_t worker) { return workers_[worker]; }
  pid_t Kill(std::size_t worker);
  void Replace(std::size_t worker);
  // Ends the running workers. True if each of them exited normally, and none, including the killed
  // ones, has found wrong bytes.
  bool EndWell();

 private:
  ChildProcess Started(std::size_t worker);

  const std::string socket_;
  const std::uint64_t seed_;
  const Successor successor_;
  std::uint64_t started_ = 0;
  std::vector<ChildProcess> workers_;
  bool well_ = true;
};

// Rewrites and publishes the blocks of its region as fast as it can, under keys that no other
// worker uses.
ChildProcess StartRecycler(const std::string& socket, const std::string& name);
std::vector<BlockKey> RecyclerKeys(const std::string& name);
inline constexpr std::uint64_t kRecyclerBlockBytes = 16 * 1024;

// Imports keys of the recyclers `names`, one at a time, through libkvclient. Prints "VALID STALE
// WRONG" and ends after `rounds` lookups that found something.
ChildProcess StartStressImporter(const std::string& socket, const std::string& name, const std::vector<std::string>& recyclers, int rounds);

// Closes the process's input and waits until it ends; empty if it does not end.
std::optional<ProcessEnd> Finish(ChildProcess& process);

}  // namespace kvm::test
