// What a region has published, block by block, and which of it kvmd has not been sent yet.
//
// kvmd gets each record once while there is a connection and room in the PublishWindow. What found
// none is deferred: one mark says from which block on records are still to be sent, so deferring
// costs no memory, and a block that is published again meanwhile is sent as it is then. A record
// that is no longer true, since its block is being rewritten, is left out.
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
  // The last publish of `block`, if it is still readable as such.
  std::optional<PublishRecord> Current(std::uint32_t block, const GenerationWriter& generations) const noexcept;
  // By block; generation 0: never published.
  std::span<const PublishRecord> all() const noexcept { return records_; }

  bool all_sent() const noexcept { return unsent_from_ == records_.size(); }
  // Some records that were Set could not be sent.
  void Defer() noexcept;
  // kvmd knows none of them now.
  void DeferAll() noexcept { unsent_from_ = 0; }
  // The same, and whatever was deferred before goes with them.
  void Restart() noexcept;

  // The next deferred records that are still true, up to `most`; Sent says how many of them went
  // out.
  std::vector<PublishRecord> NextDeferred(const GenerationWriter& generations, std::size_t most);
  void Sent(std::span<const PublishRecord> batch, std::size_t sent) noexcept;

 private:
  std::vector<PublishRecord> records_;  // [block_count]
  std::uint32_t unsent_from_;           // records from this block on are not all sent yet
  std::uint32_t batch_end_ = 0;         // of the last NextDeferred
  bool again_ = false;                  // something before unsent_from_ was deferred meanwhile
};

}  // namespace kvm
