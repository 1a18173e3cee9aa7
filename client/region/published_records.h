// PublishedRecords: the last record that a region has published of each block, and which of them
// have not been sent to kvmd yet.
//
// A record is sent once, as soon as there is a connection and room in the PublishWindow; until then
// it is deferred. A single mark says from which block on records are still to be sent, so deferring
// needs no memory, and of a block that is published again meanwhile only the newest record is sent.
// A record whose block is being rewritten is left out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "proto/shm/generation_table.h"
#include "proto/wire/publish_record.h"

namespace kvm {

// Not thread-safe: its region's lock guards it.
class PublishedRecords {
 public:
  explicit PublishedRecords(std::uint32_t blocks) : records_(blocks), unsent_from_(blocks) {}

  // Precondition: `record.block` is below the number of blocks.
  void Set(const PublishRecord& record) noexcept { records_[record.block] = record; }
  // The last record of `block`, if the block still has the record's generation.
  std::optional<PublishRecord> Current(std::uint32_t block, const GenerationWriter& generations) const noexcept;
  // By block; generation 0: never published.
  std::span<const PublishRecord> all() const noexcept { return records_; }

  bool all_sent() const noexcept { return unsent_from_ == records_.size(); }
  // Called when some records that were Set could not be sent.
  void Defer() noexcept;
  // Called when kvmd knows none of the records, so that all are sent again.
  void DeferAll() noexcept { unsent_from_ = 0; }
  // The same, with a pass over the deferred records that starts again.
  void Restart() noexcept;

  // The next deferred records that are still valid, at most `most`. The caller reports with Sent
  // how many of them were sent.
  std::vector<PublishRecord> NextDeferred(const GenerationWriter& generations, std::size_t most);
  void Sent(std::span<const PublishRecord> batch, std::size_t sent) noexcept;

 private:
  std::vector<PublishRecord> records_;  // [block_count]
  std::uint32_t unsent_from_;           // records from this block on are not all sent yet
  std::uint32_t batch_end_ = 0;         // of the last NextDeferred
  bool again_ = false;                  // a record before unsent_from_ was deferred meanwhile
};

}  // namespace kvm
