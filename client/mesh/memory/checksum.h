// The checksum of a block's bytes: on the wire to a peer, and in a record of the disk cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace kvm::mesh {

// XXH3 with 64 bits: what FetchedBlocks.checksums are.
std::uint64_t BlockChecksum(std::span<const std::byte> bytes) noexcept;

// The same of bytes that come one piece after the other.
class RunningChecksum {
 public:
  RunningChecksum();
  ~RunningChecksum();
  RunningChecksum(const RunningChecksum&) = delete;
  RunningChecksum& operator=(const RunningChecksum&) = delete;

  void Add(std::span<const std::byte> bytes) noexcept;
  // Of all that was added since the last call.
  std::uint64_t Take() noexcept;

 private:
  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace kvm::mesh
