// A peer of a benchmark, in a process of its own: holds blocks, keeps publishing, or watches for
// blocks.
//
//   kvctl → peer   PeerConfig            peer → kvctl   PeerReady, once its part is set up
//   hold           waits until the channel closes
//   churn          publishes and retracts at full rate until a PeerStop, then answers PeerDone
//   watch          for every WatchFor: WatchStarted, then spins until the key is found: WatchSeen
#pragma once

#include <cstdint>
#include <vector>

#include "client/kvctl/process/channel.h"
#include "client/kvctl/process/child_process.h"
#include "client/kvctl/process/fixed_text.h"
#include "kvm/block_key.h"
#include "kvm/device.h"
#include "kvm/geometry.h"
#include "kvm/model_spec.h"

namespace kvm::ctl {

enum class PeerRole : std::uint32_t { kHold, kChurn, kWatch };

struct PeerConfig {
  PeerRole role = PeerRole::kHold;
  FixedText<128> socket;
  FixedText<64> name;
  std::uint64_t run = 0;          // names the model and the keys of this run
  std::uint64_t first_entry = 0;  // keys [first_entry, first_entry + entries)
  std::uint64_t entries = 0;
  std::uint64_t block_bytes = 64;
  std::uint32_t chain = 512;  // keys of one chain
  std::uint32_t verify_one_in = 0;
  bool offload = true;            // kvmd's host cache gets the blocks if it asks for them
  bool fill = false;              // write the blocks' bytes
  bool scatter = false;           // neighbours of a chain lie far apart in memory
  bool shuffle = false;           // they lie anywhere; for hold only
  DeviceUuid device{};            // of the blocks; zeros: host memory
  std::uint16_t kv_group = 0;     // of the region: blocks of one group have one size
  std::uint64_t chunk_bytes = 0;  // PlaneGeometry of such chunks; 0: blocks in one piece
};
struct PeerReady {
  FixedText<512> failure;
};
struct PeerStop {};
struct PeerDone {
  std::uint64_t blocks = 0;
  double seconds = 0;
};
struct WatchFor {
  BlockKey key;
};
struct WatchStarted {
  std::uint64_t padding = 0;
};
struct WatchSeen {
  // CLOCK_MONOTONIC, the same clock in all processes; 0: not within a second
  std::int64_t at_ns = 0;
};

// Key `n` of a run: as evenly spread as a digest, without deriving sixteen million of them.
BlockKey BenchKey(std::uint64_t run, std::uint64_t n) noexcept;
ModelSpec BenchModel(std::uint64_t run);

// Block of entry n: n itself, or a permutation in which neighbours lie far apart.
class BlockOrder {
 public:
  BlockOrder(std::uint64_t entries, bool scatter) noexcept;
  std::uint32_t operator()(std::uint64_t n) const noexcept { return static_cast<std::uint32_t>(n % entries_ * step_ % entries_); }

 private:
  std::uint64_t entries_;
  std::uint64_t step_ = 1;  // shares no factor with entries_
};

// 0 … count - 1 in a random order.
std::vector<std::uint32_t> ShuffledBlocks(std::uint64_t count, std::uint64_t seed);
// [chunks, blocks, chunk_bytes] in one segment. `chunk_bytes` divides `block_bytes`.
Geometry PlaneGeometry(std::uint64_t blocks, std::uint64_t block_bytes, std::uint64_t chunk_bytes);

std::int64_t MonotonicNs() noexcept;

struct Peer {
  ChildProcess process;
  Channel channel;
};
// Starts a peer and waits until it is ready.
[[nodiscard]] Result<Peer> StartPeer(const PeerConfig& config);

// The peer's side; returns the process's exit code.
int RunBenchPeer(Channel channel);

}  // namespace kvm::ctl
