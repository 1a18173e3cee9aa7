// The registry segment, byte for byte. kvmd writes it; everyone else maps it read-only (I1).
//
//   [header 4096][model rows][region rows][tags][block index][marks]     offsets and counts in the
//                                                                        header
//
// Rows and slots carry a version word, used as a seqlock by a single writer: it is odd while the
// row or slot is being written. All fields are read with atomic loads of their word. The reader
// bounds-checks indices that it finds here and bounds its retries. A writer that died in the middle
// leaves an odd version, which readers take for a miss. A change that older readers would misread
// needs a higher kLayoutVersion; what lies behind all else does not. tests/unit pins the offsets.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kvm/block_key.h"

namespace kvm::layout {

inline constexpr std::uint64_t kRegistryMagic = 0x31474552444D564BULL;  // "KVMDREG1"
inline constexpr std::uint32_t kLayoutVersion = 1;

enum class SegmentState : std::uint64_t {
  kLive = 1,
  kSuperseded = 2,  // a newer segment exists: a client gets it by reconnecting
  kClosed = 3,      // kvmd has ended in an orderly way
};

// Cumulative since the segment was made. Only kvmd writes them, with relaxed stores.
struct Counters {
  std::atomic<std::uint64_t> published;  // entries inserted
  // Entries dropped because their block was published anew
  std::atomic<std::uint64_t> replaced;
  std::atomic<std::uint64_t> retracted;         // entries dropped on request
  std::atomic<std::uint64_t> swept;             // stale entries found by the sweeper
  std::atomic<std::uint64_t> reaped;            // entries dropped with their region
  std::atomic<std::uint64_t> refused_full;      // publishes refused: index full
  std::atomic<std::uint64_t> refused_replicas;  // publishes refused: kMaxReplicas live ones exist
  // Publishes refused: the block was rewritten already
  std::atomic<std::uint64_t> refused_stale;
  std::atomic<std::uint64_t> evicted;  // entries dropped to make room
  std::atomic<std::uint64_t> reserved[7];
};
static_assert(sizeof(Counters) == 128);

struct RegistryHeader {
  std::uint64_t magic;
  std::uint32_t layout_version;
  std::uint32_t header_bytes;
  std::uint64_t segment_bytes;
  std::uint64_t epoch;  // random, differs for every segment ever made
  char domain[64];      // NUL-terminated
  std::uint64_t model_rows_offset;
  std::uint64_t region_rows_offset;
  std::uint64_t index_offset;
  std::uint32_t model_rows;
  std::uint32_t region_rows;
  std::uint64_t index_slots;                     // slots of the open-addressing table
  std::uint64_t index_entries;                   // entries it may hold, below index_slots
  std::uint64_t tags_offset;                     // TagWords(index_slots) words
  alignas(64) std::atomic<std::uint64_t> state;  // SegmentState
  std::atomic<std::uint64_t> heartbeat_ns;       // CLOCK_MONOTONIC of kvmd's last heartbeat
  std::atomic<std::uint64_t> live_entries;
  std::atomic<std::uint64_t> live_regions;
  std::atomic<std::uint64_t> live_models;
  std::atomic<std::uint64_t> region_changes;           // +1 whenever a region row changes
  alignas(64) std::atomic<std::uint64_t> index_moves;  // odd while an entry moves; see IndexSlot
  alignas(64) Counters counters;
  // Zeros in a segment without marks; a reader that does not know of marks does not look here.
  std::uint64_t marks_offset;
  std::uint64_t mark_buckets;             // of kMarksPerBucket rows each
  std::atomic<std::uint64_t> live_marks;  // so that a reader need not look where there are none
};
inline constexpr std::size_t kHeaderBytes = 4096;
static_assert(sizeof(RegistryHeader) <= kHeaderBytes);

// A trivially copyable payload behind a version word, copied word by word.
template <class T>
class alignas(64) Row {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % 8 == 0);

 public:
  // False if the writer was in the middle of a write at each attempt, or died there.
  bool Read(T& out) const noexcept {
    std::uint64_t words[kWords];
    for (int attempt = 0; attempt < 64; ++attempt) {
      const std::uint64_t before = version_.load(std::memory_order_acquire);
      if (before & 1) continue;
      for (std::size_t i = 0; i < kWords; ++i) words[i] = words_[i].load(std::memory_order_relaxed);
      std::atomic_thread_fence(std::memory_order_acquire);
      if (version_.load(std::memory_order_relaxed) == before) {
        std::memcpy(&out, words, sizeof(T));
        return true;
      }
    }
    return false;
  }
  // For the single writer.
  void Write(const T& value) noexcept {
    std::uint64_t words[kWords];
    std::memcpy(words, &value, sizeof(T));
    const std::uint64_t version = version_.load(std::memory_order_relaxed);
    version_.store(version + 1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_release);
    for (std::size_t i = 0; i < kWords; ++i) words_[i].store(words[i], std::memory_order_relaxed);
    version_.store(version + 2, std::memory_order_release);
  }

 private:
  static constexpr std::size_t kWords = sizeof(T) / 8;
  std::atomic<std::uint64_t> version_;
  std::atomic<std::uint64_t> words_[kWords];
};

struct ModelInfo {
  std::uint32_t state;  // 0 free, 1 live
  std::uint32_t spec_bytes;
  Fingerprint fingerprint;
  char spec[1968];  // ModelSpec::Canonical()
};
static_assert(sizeof(ModelInfo) == 2008);
using ModelRow = Row<ModelInfo>;
static_assert(sizeof(ModelRow) == 2048);

enum class RegionState : std::uint32_t {
  kFree = 0,
  kLive = 1,         // its owner is connected
  kWithdrawing = 2,  // unregistered, waiting for importers to unmap
  kOrphan = 3,       // its owner has died, and kvmd keeps the memory
};

enum class HandleKind : std::uint32_t {
  kHostMemfd = 1,
  kCudaIpc = 2,
  kCudaVmmFd = 3,
};

struct RegionInfo {
  std::uint32_t state;         // RegionState
  std::uint32_t region_epoch;  // never 0, never used twice within a segment
  std::uint32_t model;         // row of the model table
  std::uint32_t handle_kind;   // HandleKind of all its segments
  std::uint32_t block_count;
  std::uint32_t segment_count;
  std::uint64_t block_bytes;
  std::uint64_t client_id;
  std::uint32_t owner_pid;
  std::uint32_t owner_uid;
  std::uint16_t tp_rank, tp_size, pp_rank, pp_size, kv_group, reserved16[3];
  std::uint8_t device_uuid[16];  // zeros for host memory
  std::uint8_t handle[64];       // segment 0's cudaIpcMemHandle; zeros for descriptors
  std::uint64_t live_entries;
  std::uint64_t registered_ms;  // CLOCK_REALTIME
  char name[64];                // NUL-terminated
};
static_assert(sizeof(RegionInfo) == 224);
using RegionRow = Row<RegionInfo>;
static_assert(sizeof(RegionRow) == 256);

// One slot of the block index, which holds at most one entry. The index uses open addressing with
// linear probing from Home(key); a slot is one cache line.
//
// All slots of one key (its replicas) lie on one probe chain, in order of publication; kMore is set
// on every one but the last, so that a reader knows where to stop. Deletion moves later entries of
// the cluster back. header.index_moves is odd during such a move and has another value afterwards;
// a reader that found nothing searches again if it saw that value change.
struct alignas(64) IndexSlot {
  std::atomic<std::uint32_t> version;       // seqlock of this slot
  std::atomic<std::uint32_t> region_epoch;  // 0: empty
  std::atomic<std::uint64_t> key_lo;
  std::atomic<std::uint64_t> key_hi;
  std::atomic<std::uint64_t> generation;
  std::atomic<std::uint64_t> parent_lo;  // BlockKey::lo of the parent; for operators and eviction
  std::atomic<std::uint32_t> region;     // row of the region table
  std::atomic<std::uint32_t> block;
  std::atomic<std::uint32_t> depth;        // blocks before this one in its prefix
  std::atomic<std::uint32_t> flags;        // kMore
  std::atomic<std::uint32_t> published_s;  // seconds since kvmd made the segment
  std::atomic<std::uint32_t> reserved;

  static constexpr std::uint32_t kMore = 1;
};
static_assert(sizeof(IndexSlot) == 64);

inline constexpr std::uint32_t kMaxReplicas = 8;

// Tags: a byte for each slot, eight in a word, lowest first; 0 for an empty slot, else Tag(key).
// Tags are hints that save a lookup most cache misses; only the index itself says where an entry
// is.
using TagWord = std::atomic<std::uint64_t>;
constexpr std::uint64_t Tag(const BlockKey& key) noexcept { return 0x80 | (key.lo & 0x7f); }
// Two words more than the slots need, so that a reader may look 16 tags ahead of any slot.
constexpr std::uint64_t TagWords(std::uint64_t slots) noexcept { return slots / 8 + 3; }

// A key whose block a client is computing: a hint for others, which may wait for it. It lies in the
// bucket that MarkBucket names, in any row of it.
struct MarkInfo {
  std::uint64_t key_lo, key_hi;  // both 0: the row is free
  std::uint64_t client_id;       // the client that computes
  std::uint64_t marked_ns;       // CLOCK_MONOTONIC, as is the next
  std::uint64_t expires_ns;      // from then on a reader ignores it
};
static_assert(sizeof(MarkInfo) == 40);
using MarkRow = Row<MarkInfo>;
static_assert(sizeof(MarkRow) == 64);
inline constexpr std::uint64_t kMarksPerBucket = 4;
// --max-mark-ttl-s has no larger value. A mark with more time left is damaged, or made by another
// clock, and counts as none.
inline constexpr std::uint64_t kLongestMarkNs = 3'600'000'000'000;

__extension__ typedef unsigned __int128 Uint128;

constexpr std::uint64_t MarkBucket(const BlockKey& key, std::uint64_t buckets) noexcept {
  return static_cast<std::uint64_t>((static_cast<Uint128>(key.hi) * buckets) >> 64);
}
// First slot of a key's probe chain. The key is a hash already.
constexpr std::uint64_t Home(const BlockKey& key, std::uint64_t slots) noexcept {
  return static_cast<std::uint64_t>((static_cast<Uint128>(key.hi) * slots) >> 64);
}

}  // namespace kvm::layout
