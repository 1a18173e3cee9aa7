// Generations of a region's blocks: they decide which bytes are readable (I2: checked before and after each
// copy; I3: the order in which an owner writes).
//
//   even > 0  readable: the bytes are those of the publish that carried this value
//   odd       being written, or ended: bit 63 says that its owner has stopped owning the block
//   0         never written
//
// Only the region's owner process(es) write it; everyone else maps it read-only. Layout: a 64-byte
// header, then block_count 64-bit counters, then, if the header says so, as many 64-bit checksums of the
// blocks' contents. All calls are lock-free and safe from any thread.
//
// Owner:  g = BeginWrite(b) → overwrite the bytes → FinishWrite(b, g) → publish (key, b, g + 1).
// Reader: Current(b) == g → copy → acquire fence → Current(b) == g again, else throw the copy away.
// End of ownership: End(b), before anything else may write the bytes. It sets bit 63 in the counter itself,
// so one atomic operation decides against every write: those that have begun find another value than
// theirs and can't finish, and none can begin any more. Only the next owner of the whole table (TakeUp) can
// make the block readable again.
// Order:  the release fence in BeginWrite and End keeps the overwriting stores behind the odd value, as in any
// seqlock's writer; FinishWrite releases them. A crash between the two leaves the
// block odd: unreadable for ever, which is right.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvm/error.h"

namespace kvm {

using Generation = std::uint64_t;

constexpr bool IsReadable(Generation generation) noexcept { return generation != 0 && (generation & 1) == 0; }

// Set in an odd value: the block's owner has stopped owning it, and no write begins there.
inline constexpr Generation kGenerationEnded = Generation{1} << 63;
constexpr bool IsEnded(Generation generation) noexcept { return (generation & kGenerationEnded) != 0; }

struct GenerationHeader {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t block_count;
  std::uint32_t has_checksums;  // 0 or 1
  std::uint32_t reserved32;
  std::uint64_t reserved[5];
};
static_assert(sizeof(GenerationHeader) == 64);
static_assert(sizeof(std::atomic<Generation>) == 8 && std::atomic<Generation>::is_always_lock_free);

inline constexpr std::uint64_t kGenerationMagic = 0x314E45474D564BULL;  // "KVMGEN1"
inline constexpr std::uint32_t kGenerationLayoutVersion = 1;

constexpr std::size_t GenerationTableBytes(std::uint32_t block_count, bool checksums = false) noexcept {
  return sizeof(GenerationHeader) + std::size_t{block_count} * sizeof(Generation) * (checksums ? 2 : 1);
}

// Read side: a view of mapped memory that the caller keeps alive. Trivially copyable.
class GenerationReader {
 public:
  GenerationReader() = default;
  // kProtocol: the memory is not a generation table of `block_count` blocks.
  [[nodiscard]] static Result<GenerationReader> Open(std::span<const std::byte> memory, std::uint32_t block_count);

  std::uint32_t block_count() const noexcept { return block_count_; }

  bool has_checksums() const noexcept { return checksums_ != nullptr; }
  // Of the content that the block's generation stands for: read it between two looks at that.
  // Precondition: has_checksums(). 0 for a block out of range.
  std::uint64_t Checksum(std::uint32_t block) const noexcept {
    return block < block_count_ ? checksums_[block].load(std::memory_order_acquire) : 0;
  }

  // 0 (never readable) for a block out of range.
  Generation Current(std::uint32_t block) const noexcept {
    return block < block_count_ ? counters_[block].load(std::memory_order_acquire) : 0;
  }
  // Whether bytes copied from `block` before this call are those of `generation`.
  bool StillValid(std::uint32_t block, Generation generation) const noexcept {
    std::atomic_thread_fence(std::memory_order_acquire);
    return block < block_count_ && counters_[block].load(std::memory_order_relaxed) == generation;
  }
  // Whether the owner has given the whole table up: End goes from the last block to the first.
  bool all_ended() const noexcept { return IsEnded(Current(0)); }
  // Always inlined: GCC takes a function that only prefetches for one without effect and drops the call.
  [[gnu::always_inline]] void Prefetch(std::uint32_t block) const noexcept {
    if (block < block_count_) __builtin_prefetch(&counters_[block]);
  }

 protected:
  const std::atomic<Generation>* counters_ = nullptr;
  const std::atomic<std::uint64_t>* checksums_ = nullptr;  // null: none
  std::uint32_t block_count_ = 0;
};

// Write side, of the region's owner.
class GenerationWriter : public GenerationReader {
 public:
  GenerationWriter() = default;
  // Formats `memory` (zeroed, at least GenerationTableBytes(…)); the caller keeps it alive.
  static GenerationWriter Format(std::span<std::byte> memory, std::uint32_t block_count, bool checksums = false) noexcept;

  // The same of a table that was formatted before, to go on with its generations. kProtocol.
  [[nodiscard]] static Result<GenerationWriter> Open(std::span<std::byte> memory, std::uint32_t block_count);

  // Withdraws the block from readers and returns the odd value that this write owns. Also when it is
  // odd already: the earlier write then can't finish. 0, which no FinishWrite takes: the block has ended, or ends here
  // since its counter has no further value. Precondition: block < block_count().
  Generation BeginWrite(std::uint32_t block) noexcept {
    std::atomic<Generation>& counter = Counter(block);
    Generation seen = counter.load(std::memory_order_relaxed);
    for (;;) {
      if (IsEnded(seen)) return 0;
      const Generation next = (seen + 1) | 1;
      const bool spent = next >= kLastWrite;
      if (counter.compare_exchange_weak(seen, spent ? kSpent : next, std::memory_order_acq_rel, std::memory_order_relaxed)) {
        std::atomic_thread_fence(std::memory_order_release);
        return spent ? 0 : next;
      }
    }
  }

  // Gives the block up: unreadable from here on, whatever writes are under way. Precondition: block < block_count().
  void End(std::uint32_t block) noexcept {
    Counter(block).fetch_or(kGenerationEnded | 1, std::memory_order_acq_rel);
    std::atomic_thread_fence(std::memory_order_release);
  }
  // The same for all of them, the first block last.
  void EndAll() noexcept {
    for (std::uint32_t block = block_count(); block-- > 0;) End(block);
  }

  // For the next owner of a table whose last one can't write any more: a block that has ended can be written again,
  // under values above all that it had. One whose counter is at its end stays as it is. Precondition: block < block_count().
  void TakeUp(std::uint32_t block) noexcept {
    Generation seen = Counter(block).load(std::memory_order_relaxed);
    while (IsEnded(seen)) {
      const Generation next = ((seen & ~kGenerationEnded) + 1) | 1;
      if (next >= kLastWrite) return;
      if (Counter(block).compare_exchange_weak(seen, next, std::memory_order_acq_rel, std::memory_order_relaxed)) return;
    }
  }
  void TakeUpAll() noexcept {
    for (std::uint32_t block = 0; block < block_count(); ++block) TakeUp(block);
  }

  // Between BeginWrite and FinishWrite. Preconditions: has_checksums(), block < block_count().
  void SetChecksum(std::uint32_t block, std::uint64_t checksum) noexcept {
    const_cast<std::atomic<std::uint64_t>&>(checksums_[block]).store(checksum, std::memory_order_relaxed);
  }

  // Makes the block readable as generation `write + 1`; false if another write began meanwhile, or the block has ended.
  bool FinishWrite(std::uint32_t block, Generation write) noexcept {
    return (write & 1) != 0 && !IsEnded(write) &&
           Counter(block).compare_exchange_strong(write, write + 1, std::memory_order_release, std::memory_order_relaxed);
  }

 private:
  // The odd value whose even one would be the flag itself, and what a counter that comes there ends with.
  static constexpr Generation kLastWrite = kGenerationEnded - 1, kSpent = ~Generation{0};

  std::atomic<Generation>& Counter(std::uint32_t block) noexcept { return const_cast<std::atomic<Generation>&>(counters_[block]); }
};

}  // namespace kvm
