// The generations of a region's blocks. They decide which bytes are readable: a reader checks a
// block's generation before and after each copy (I2), and an owner changes it in a fixed order
// around each write (I3).
//
//   even > 0  readable: the bytes are those of the publish that carried this value
//   odd       being written, or ended: bit 63 is set when the owner has stopped owning the block
//   0         never written
//
// Only the region's owner process(es) write it; everyone else maps it read-only. Layout: a 64-byte
// header, then block_count 64-bit counters, then, if the header says so, as many 64-bit checksums
// of the blocks' contents; an owner may record those of a sample only. All calls are lock-free and
// safe from any thread.
//
// Owner:  g = BeginWrite(b) → overwrite the bytes → FinishWrite(b, g) → publish (key, b, g + 1).
// Reader: Current(b) == g → copy → acquire fence → Current(b) == g again, else throw the copy away.
// End of ownership: End(b), before anything else may write the bytes. It sets bit 63 in the counter
// itself, so one atomic operation stops all writes: a write that has begun finds a value that is
// not its own and can't finish, and no write can begin any more. Only the next owner of the whole
// table can make the block readable again (TakeUp). Memory order: the release fence in BeginWrite
// and End keeps the overwriting stores behind the odd value, as in the writer of any seqlock;
// FinishWrite releases them. A crash between BeginWrite and FinishWrite leaves the block odd and so
// unreadable for ever, as it must be, since its bytes are incomplete.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "kvm/error.h"

namespace kvm {

using Generation = std::uint64_t;

constexpr bool IsReadable(Generation generation) noexcept { return generation != 0 && (generation & 1) == 0; }

// Set, in an odd value, when the block's owner has stopped owning it; no write to the block can
// begin any more.
inline constexpr Generation kGenerationEnded = Generation{1} << 63;
constexpr bool IsEnded(Generation generation) noexcept { return (generation & kGenerationEnded) != 0; }

// In the place of a checksum: there is none.
inline constexpr std::uint64_t kNoChecksum = 0;

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
  // The checksum of the content that the block's generation stands for. It is valid if the
  // generation is the same before and after this call. kNoChecksum: the owner has recorded none, or
  // the block is out of range. Precondition: has_checksums().
  std::uint64_t Checksum(std::uint32_t block) const noexcept {
    return block < block_count_ ? checksums_[block].load(std::memory_order_acquire) : kNoChecksum;
  }

  // 0 (never readable) for a block out of range.
  Generation Current(std::uint32_t block) const noexcept {
    return block < block_count_ ? counters_[block].load(std::memory_order_acquire) : 0;
  }
  // Whether the bytes that were copied from `block` before this call are those of `generation`.
  bool StillValid(std::uint32_t block, Generation generation) const noexcept {
    std::atomic_thread_fence(std::memory_order_acquire);
    return block < block_count_ && counters_[block].load(std::memory_order_relaxed) == generation;
  }
  // Whether the owner has ended all blocks. EndAll goes from the last block to the first, so the
  // first one tells.
  bool all_ended() const noexcept { return IsEnded(Current(0)); }
  // Always inlined: GCC treats a function that only prefetches as one without effect, and drops the
  // call.
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
  // Formats `memory`, which is zeroed and has at least GenerationTableBytes(…) bytes; the caller
  // keeps it alive.
  static GenerationWriter Format(std::span<std::byte> memory, std::uint32_t block_count, bool checksums = false) noexcept;

  // Opens a table that was formatted before, and goes on with its generations. kProtocol: it is no
  // such table.
  [[nodiscard]] static Result<GenerationWriter> Open(std::span<std::byte> memory, std::uint32_t block_count);

  // Withdraws the block from readers and returns the odd value that this write owns. If the counter
  // is odd already, the earlier write can't finish any more. Returns 0, which FinishWrite refuses,
  // if the block has ended, or ends with this call because its counter has no further value.
  // Precondition: block < block_count().
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

  // For many blocks: called some blocks ahead of BeginWrite. Else its atomic operation waits for
  // the counter's line, and all that follows waits for the operation. Always inlined, as Prefetch.
  [[gnu::always_inline]] void PrefetchToWrite(std::uint32_t block) const noexcept {
    if (block < block_count_) __builtin_prefetch(&counters_[block], 1);
  }

  // Ends the ownership of the block: it is unreadable from here on, also if a write is under way.
  // Precondition: block < block_count().
  void End(std::uint32_t block) noexcept {
    Counter(block).fetch_or(kGenerationEnded | 1, std::memory_order_acq_rel);
    std::atomic_thread_fence(std::memory_order_release);
  }
  // Ends all blocks, the first block last.
  void EndAll() noexcept {
    for (std::uint32_t block = block_count(); block-- > 0;) End(block);
  }

  // For the next owner of a table, when the last owner can't write any more. A block that has ended
  // can be written again, with values above all that it has had. A block whose counter has no
  // further value stays ended. Precondition: block < block_count().
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

  // To be called between BeginWrite and FinishWrite, of every block of a table with checksums, with
  // kNoChecksum if there is none: else the block would keep that of its last content.
  // Preconditions: has_checksums(), block < block_count().
  void SetChecksum(std::uint32_t block, std::uint64_t checksum) noexcept {
    const_cast<std::atomic<std::uint64_t>&>(checksums_[block]).store(checksum, std::memory_order_relaxed);
  }

  // Makes the block readable as generation `write + 1`. False if another write has begun meanwhile,
  // or the block has ended.
  bool FinishWrite(std::uint32_t block, Generation write) noexcept {
    return (write & 1) != 0 && !IsEnded(write) &&
           Counter(block).compare_exchange_strong(write, write + 1, std::memory_order_release, std::memory_order_relaxed);
  }

 private:
  // kLastWrite is the odd value after which the even value would be the flag itself. A counter that
  // reaches it is set to kSpent.
  static constexpr Generation kLastWrite = kGenerationEnded - 1, kSpent = ~Generation{0};

  std::atomic<Generation>& Counter(std::uint32_t block) noexcept { return const_cast<std::atomic<Generation>&>(counters_[block]); }
};

}  // namespace kvm
