// BenchSetup: a kvmd for a benchmark (a private one, or the node's with --on-this-node) and this
// process's client.
//
// On the node's kvmd, all regions end with their processes (outlives_owner is off), no block is
// copied to the host cache, and the benchmark checks that there is room for all blocks before it
// publishes one.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "client/kvctl/bench/bench.h"
#include "client/kvctl/bench/bench_peer.h"
#include "client/kvctl/process/private_kvmd.h"
#include "kvclient/kvclient.h"

namespace kvm::ctl {

inline constexpr std::uint64_t kKiB = 1 << 10, kMiB = 1 << 20;
// The longest that a step of a benchmark may take: a flush, an import, an offload.
inline constexpr std::chrono::seconds kBenchTimeout{60};

class BenchSetup {
 public:
  // `max_entries`: the size of a private kvmd, and the room that the node's kvmd must have.
  // `arguments`: additional ones of a private kvmd. Catches interrupts. kResourceExhausted: the
  // node's kvmd has no room.
  [[nodiscard]] static Result<BenchSetup> Start(const CommonOptions& common, const BenchOptions& options, std::uint64_t max_entries,
                                                std::vector<std::string> arguments = {});

  const std::string& socket() const noexcept { return socket_; }
  std::uint64_t run() const noexcept { return run_; }
  PeerConfig Config(PeerRole role, std::string_view name) const;

  // A client of this process that has declared the run's model.
  // `devices`: GPUs that it imports to.
  [[nodiscard]] Result<std::shared_ptr<Client>> Connect(std::string_view name, std::vector<DeviceUuid> devices = {});
  const Model& model() const noexcept { return model_; }
  [[nodiscard]] Result<std::shared_ptr<Region>> Allocate(Client& client, std::string_view name, Geometry geometry,
                                                         const DeviceUuid& device = kHostMemory, std::uint16_t kv_group = 0);

 private:
  PrivateKvmd kvmd_;
  std::string socket_;
  std::uint64_t run_ = 0;
  bool offloader_ = true;  // the host cache may have the blocks
  std::uint32_t verify_one_in_ = 0;
  Model model_;
};

// Whether all blocks were found, or imported. kStale: the first one that was not was rewritten, or
// its region has left or is not mapped yet, as happens while owners come and go. kSystem: anything
// else.
[[nodiscard]] Status AllFound(const Client& client, const Match& match, std::size_t wanted);
[[nodiscard]] Status AllImported(const ImportResult& result);

// kCancelled once the user has pressed Ctrl-C; to be called in loops.
[[nodiscard]] Status GoOn();

}  // namespace kvm::ctl
