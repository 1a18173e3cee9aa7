// Workers of a soak of several nodes, in processes of their own. Publishers fill their pools with
// prompts, and reuse and retract blocks all the time; joiners join prompts of another node and
// compare every byte. What they count is in memory that all of them share, so that it outlives
// each of them.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "proto/base/unique_fd.h"
#include "tests/support/process/child_process.h"

namespace kvm::test {

inline constexpr std::size_t kSoakNodes = 2;
inline constexpr std::size_t kSoakPublishers = 2;  // of a node
inline constexpr std::uint64_t kSoakBlockBytes = 4096;
inline constexpr std::uint32_t kSoakMostBlocks = 128;  // of a prompt

// How old the prompts are that are joined: the newest are in a pool, older ones in the host cache,
// and the oldest ones on a disk, if at all.
inline constexpr std::array<std::uint64_t, 3> kSoakAges{6, 60, 600};

struct SoakCounts {
  // The number of the newest prompt of each publisher
  std::atomic<std::uint64_t> published[kSoakNodes][kSoakPublishers];
  // A storm takes blocks without publishing a prompt
  std::atomic<std::uint64_t> published_blocks, stormed_blocks;
  // Compared: of those that were fetched
  std::atomic<std::uint64_t> joins, fetched, compared, wrong;
  std::atomic<std::uint64_t> stale;  // imports of what was fetched that failed
  std::atomic<std::uint64_t> fetched_of_age[kSoakAges.size()];
};

// The counts, in a file that other processes map, too.
class SoakBoard {
 public:
  explicit SoakBoard(const std::string& path);  // made if it is not there
  ~SoakBoard();
  SoakBoard(const SoakBoard&) = delete;
  SoakBoard& operator=(const SoakBoard&) = delete;
  SoakCounts* operator->() const noexcept { return counts_; }

 private:
  SoakCounts* counts_ = nullptr;
};

// Where a worker of a soak works.
struct SoakPlace {
  std::string kvmd_socket, mesh_socket;  // of its node
  std::string board;                     // path
  std::string log;                       // path of its standard error
  std::size_t node = 0;
};

// Each one ends with exit code 0 when its input closes. A joiner has then written a line for each
// reason why a join brought no more, "COUNT REASON" without numbers in it.
ChildProcess StartSoakPublisher(const SoakPlace& place, std::size_t publisher, std::uint64_t seed);
ChildProcess StartSoakJoiner(const SoakPlace& place, std::size_t source_node, std::uint64_t seed);

std::string SoakNodeName(std::size_t node);

}  // namespace kvm::test
