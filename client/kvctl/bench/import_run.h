// ImportRun: the common part of the rows of the import benchmark on GPUs: a peer process with
// blocks, and timed imports of these by this process. It works for any memory; a UUID of zeros is
// host memory.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "client/kvctl/bench/bench_rows.h"
#include "client/kvctl/bench/bench_setup.h"

namespace kvm::ctl {

// Blocks that a peer process holds: `blocks` of `block_bytes`, each in chunks of `chunk_bytes` that
// lie in planes of their own ([chunks, blocks, chunk_bytes]), in a random order.
struct SourceBlocks {
  std::uint64_t block_bytes = 0, chunk_bytes = 0, blocks = 0;
  std::uint16_t kv_group = 0;
  Peer peer;
  std::vector<BlockKey> keys;
};

// What a row copies, for a caller that copies as much by other means.
struct CopiedRow {
  std::string name;
  std::string title;
  DeviceUuid importer{}, owner{};  // owner kHostMemory: kvmd's host cache
  std::uint64_t bytes = 0;
  std::uint32_t rounds = 0;
};
// Called before a row's imports and again after them, so that a drift of the machine meets both;
// may be empty. An error ends the benchmark.
using BesideRow = std::function<Status(const CopiedRow&)>;

class ImportRun {
 public:
  // `devices`: GPUs that will be imported to; empty for host memory. `kvmd_arguments`: additional
  // ones of a private kvmd.
  [[nodiscard]] static Result<std::unique_ptr<ImportRun>> Start(const CommonOptions& common, const BenchOptions& options,
                                                                std::uint64_t max_entries, std::vector<DeviceUuid> devices,
                                                                std::vector<std::string> kvmd_arguments = {});
  const std::string& socket() const noexcept { return setup_.socket(); }

  // Starts a peer that holds `bytes` on `owner`. To be called before Connect.
  [[nodiscard]] Result<SourceBlocks> Hold(const DeviceUuid& owner, std::uint64_t bytes, std::uint64_t block_bytes,
                                          std::uint64_t chunk_bytes);
  // Connects this process's client, and maps all regions of the peers.
  [[nodiscard]] Status Connect();

  // Makes a destination for blocks of `source`; consecutive blocks of its chain are placed in a
  // random order.
  struct Target {
    std::shared_ptr<Region> region;
    std::vector<std::uint32_t> blocks;
  };
  [[nodiscard]] Result<Target> Allocate(const DeviceUuid& device, const SourceBlocks& source);

  // To be called once the peer has ended: imports until every block comes from the host cache.
  // kDeadlineExceeded.
  [[nodiscard]] Status WaitForHostCacheOnly(const SourceBlocks& source, const Target& target);

  struct Timing {
    Samples find_s, import_s, whole_s;
  };
  // Imports `bytes` of the source, `rounds` times and a few more that warm up: always the same
  // blocks, or with `wander` others each time. Import is timed from the call to validated. An error
  // if not all are, or if a further, untimed import over other bytes does not give the bytes of the
  // keys.
  [[nodiscard]] Result<Timing> Import(const SourceBlocks& source, const Target& target, std::uint64_t bytes, unsigned max_sms,
                                      std::uint32_t rounds, bool wander = false);
  // The same as a row: its value is the rate of the import.
  [[nodiscard]] Result<BenchRow> Measure(const SourceBlocks& source, const Target& target, const CopiedRow& what, unsigned max_sms,
                                         const BesideRow& beside);
  // That every byte of the blocks imported is what its key says. kSystem.
  [[nodiscard]] Status Check(const SourceBlocks& source, const Target& target);

 private:
  Status ImportOnce(std::span<const BlockKey> keys, const Target& target, std::span<const std::uint32_t> blocks, unsigned max_sms,
                    Timing* timing);
  // Imports the first `count` blocks over other bytes, and compares them.
  Status ImportOverOther(const SourceBlocks& source, const Target& target, std::uint64_t count, unsigned max_sms);

  BenchSetup setup_;
  std::vector<DeviceUuid> devices_;
  std::shared_ptr<Client> client_;
  std::uint64_t entries_ = 0;  // of all peers so far
  std::uint16_t groups_ = 0;
  std::uint32_t targets_ = 0;
};

}  // namespace kvm::ctl
