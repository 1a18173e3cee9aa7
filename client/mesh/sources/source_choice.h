// The choice of the source, a peer or the disk, from which a join fetches: what is known about each
// one, in; one of them, or none, and the reasons, out. JoinService acts on it, and
// `kvctl mesh explain` shows it.
//
// A source is worth asking if fetching its blocks is expected to take less time than computing
// them:
//
//   round trip + blocks * block_bytes / rate    <    blocks / prefill rate
//
// where blocks that a peer has on its disk have a rate of their own. One that has not been measured
// is asked, since otherwise it never would be, and so is any if the worker has not told its prefill
// rate. Pure functions.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvm::mesh {

using Seconds = std::chrono::duration<double>;

// A source as the choice sees it.
struct Candidate {
  std::string node;
  std::size_t depth = 0;          // leading blocks that it seems to have
  std::uint64_t bytes_per_s = 0;  // expected; PeerRate::kUnknown: not measured
  // Of `depth`, the last ones, which a peer seems to have on its disk only, and their rate
  std::size_t disk = 0;
  std::uint64_t disk_bytes_per_s = 0;
  std::size_t in_flight = 0;  // requests that share its rate
  Seconds round_trip{};
  bool hinted = false;  // the worker was told that it has the blocks
  bool fresh = true;    // its summary is in use
  bool shunned = false;
  std::string refusal;  // why it can't be asked now; empty: it can
  bool asked = false;   // by this join already
};

struct ChoiceTerms {
  std::size_t local = 0;  // leading blocks that the node has
  std::size_t keys = 0;   // of the whole prefix
  std::size_t min_blocks = 1;
  std::uint64_t block_bytes = 0;
  double prefill_blocks_per_s = 0;  // 0: unknown
};

struct Choice {
  std::optional<std::size_t> chosen;  // index of a candidate
  std::size_t depth = 0;              // how far it is expected to reach
  std::vector<std::string> verdicts;  // of each candidate
  std::string reason;                 // why none was chosen
};

Choice ChooseSource(std::span<const Candidate> candidates, const ChoiceTerms& terms);

}  // namespace kvm::mesh
