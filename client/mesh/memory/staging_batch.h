// StagingBatch: some blocks on their way to a peer, or to the disk. Owns slots of the staging pool
// until it is destroyed, which must be after the transfer has ended. Of the io_context's thread,
// except Import.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "client/mesh/memory/slot_pool.h"
#include "kvclient/client.h"

namespace kvm::mesh {

class StagingBatch {
 public:
  // Takes up to `blocks` slots; fewer, or none, if the pool has no more.
  StagingBatch(std::shared_ptr<SlotPool> pool, std::size_t blocks);
  ~StagingBatch();
  StagingBatch(const StagingBatch&) = delete;
  StagingBatch& operator=(const StagingBatch&) = delete;

  std::size_t size() const noexcept { return slots_.size(); }
  // Finds the leading ones of `keys` and copies them here, validated, with their checksums. Returns
  // how many there are. On any thread, for it copies.
  [[nodiscard]] std::size_t Import(Client& client, std::span<const BlockKey> keys, Deadline deadline);
  // The same for keys that need not follow one another, of which any may be missing. To kvmd it is
  // no use of the blocks. [keys.size()]
  [[nodiscard]] std::vector<bool> ImportEach(Client& client, std::span<const BlockKey> keys, Deadline deadline);

  // Of the i-th block that Import has copied.
  std::span<const std::byte> bytes(std::size_t i) const noexcept;
  std::uint64_t checksum(std::size_t i) const noexcept { return checksums_[i]; }

 private:
  std::shared_ptr<SlotPool> pool_;
  std::vector<std::uint32_t> slots_;
  std::vector<std::uint64_t> checksums_;
};

}  // namespace kvm::mesh
