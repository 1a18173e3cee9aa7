// Import: copying a match's blocks into a region of this client, validated.
//
// Destination blocks are withdrawn (BeginWrite) when the import starts, and stay unreadable to
// other processes until the caller publishes them with the writes that the result lists. A failed
// import is a miss: blocks that failed contain arbitrary bytes and must be computed. Blocks behind
// a failed one count as failed, since a prefix with a hole is useless.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kvclient/match.h"
#include "kvclient/types.h"

namespace kvm {

// Why a block was not imported.
enum class ImportFailure : std::uint8_t {
  kStale = 1,         // rewritten by its owner before or during the copy
  kBehindFailed = 2,  // an earlier block of the match failed
  kDeadline = 3,      // not copied in time
  kUnmapped = 4,      // the source region was withdrawn, or can't be reached from the destination
  kError = 5,         // the copy could not be made
  // ImportOptions::verify, ClientOptions::verify_one_in: the bytes are not those that were
  // published
  kCorrupt = 6,
};

std::string_view ImportFailureName(ImportFailure failure) noexcept;  // "stale", "behind_failed", …

// A block of the match that was not imported; it has to be computed.
struct FailedBlock {
  std::size_t index = 0;    // into the match
  std::uint32_t block = 0;  // of the destination region
  ImportFailure reason = ImportFailure::kStale;
};

// What has become of an import. Only the leading `valid` blocks may be used.
struct ImportResult {
  std::size_t valid = 0;            // leading blocks copied and validated
  std::uint64_t bytes = 0;          // of the valid ones
  std::vector<BlockWrite> writes;   // one per destination block, to publish with: [match.size()]
  std::vector<FailedBlock> failed;  // all blocks from index `valid` on
};

// How an import is made, and by when it has to be over.
struct ImportOptions {
  // Blocks that are not copied by then fail with kDeadline.
  Deadline deadline = Deadline::max();
  // Compare the copied bytes with the checksums that their publishers recorded
  // (RegionOptions::checksums); blocks without one are not compared. False: only the sample of
  // ClientOptions::verify_one_in is. Guards against faults of memory and links, and against owners
  // that write without BeginWrite. The call of the ticket that finds the copy complete reads the
  // bytes once more to do so.
  bool verify = false;
  // Report the imported blocks to kvmd as used, which keeps them in the host cache. False: for a
  // process that copies blocks to keep them elsewhere, so that its copies are no reason to keep
  // them here.
  bool counts_as_use = true;

  // For destinations on a GPU only:
  // The copy takes place in this stream's order: after the work that is queued on it, before later
  // work. Default: a stream of libkvclient; then no queued work may use the destination blocks.
  std::optional<StreamHandle> stream{};
  unsigned max_sms = 0;      // multiprocessors that the copy may occupy; 0: as many as it takes
  bool wants_event = false;  // ImportTicket::event()
};

// An import under way. Not thread-safe. A default-constructed or moved-from ticket is done and has
// an empty result. Destroying it waits for copies that have started. For copies on libkvclient's
// streams it waits without a limit, since nothing else orders them before the caller's next use of
// the destination blocks. For copies on a stream of the caller's (ImportOptions::stream) it waits
// up to ClientOptions::timeout. Such a copy then takes place when the stream reaches it, and source
// and destination stay mapped until it has: later work of that stream comes after it, and any other
// use of the destination blocks must wait for the stream. In a forked child, a ticket of the parent
// is done, and all of its blocks have failed.
class ImportTicket {
 public:
  struct Impl;
  ImportTicket();
  explicit ImportTicket(std::unique_ptr<Impl> impl);
  ~ImportTicket();
  ImportTicket(ImportTicket&&) noexcept;
  ImportTicket& operator=(ImportTicket&&) noexcept;

  bool Done() noexcept;  // polls; never waits
  // A cudaEvent_t that completes once the copy and its validation have; null unless
  // ImportOptions::wants_event. Valid while the ticket lives. Work that waits for it sees the
  // copied bytes, but only result() tells which are valid.
  void* event() const noexcept;
  // Waits until the import has ended. kDeadlineExceeded: it is still under way.
  [[nodiscard]] Status Wait(Deadline deadline) noexcept;
  // Precondition: Done() or Wait() succeeded.
  const ImportResult& result() const noexcept;

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvm
