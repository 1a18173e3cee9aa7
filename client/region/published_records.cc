#include "client/region/published_records.h"

namespace kvm {

std::optional<PublishRecord> PublishedRecords::Current(std::uint32_t block, const GenerationWriter& generations) const noexcept {
  if (block >= records_.size() || records_[block].generation == 0) return std::nullopt;
  if (generations.Current(block) != records_[block].generation) return std::nullopt;
  return records_[block];
}

void PublishedRecords::Defer() noexcept {
  if (all_sent()) {
    unsent_from_ = 0;
  } else {
    again_ = true;
  }
}

void PublishedRecords::Restart() noexcept {
  unsent_from_ = 0;
  again_ = false;
}

std::vector<PublishRecord> PublishedRecords::NextDeferred(const GenerationWriter& generations, std::size_t most) {
  std::vector<PublishRecord> batch;
  batch_end_ = unsent_from_;
  for (; batch_end_ < records_.size() && batch.size() < most; ++batch_end_) {
    if (const std::optional<PublishRecord> record = Current(batch_end_, generations)) batch.push_back(*record);
  }
  return batch;
}

void PublishedRecords::Sent(std::span<const PublishRecord> batch, std::size_t sent) noexcept {
  if (sent < batch.size()) {
    unsent_from_ = batch[sent].block;
    return;
  }
  unsent_from_ = batch_end_;
  if (all_sent() && again_) {
    again_ = false;
    unsent_from_ = 0;
  }
}

}  // namespace kvm
