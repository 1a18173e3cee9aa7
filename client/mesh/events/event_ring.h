// EventRing: the latest batches that were published, for subscribers that have missed some. Bounded
// in batches and in bytes; batches share their bytes with the socket that sends them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace kvm::mesh {

// One message of the stream.
struct PublishedBatch {
  std::uint64_t sequence = 0;
  std::shared_ptr<const std::string> topic;
  std::shared_ptr<const std::string> payload;
};

class EventRing {
 public:
  explicit EventRing(std::size_t most_batches, std::size_t most_bytes) : most_batches_(most_batches), most_bytes_(most_bytes) {}

  void Add(PublishedBatch batch) {
    bytes_ += batch.payload->size();
    batches_.push_back(std::move(batch));
    while (batches_.size() > most_batches_ || (bytes_ > most_bytes_ && batches_.size() > 1)) {
      bytes_ -= batches_.front().payload->size();
      batches_.pop_front();
    }
  }
  // Whether all batches from `sequence` on are there.
  bool Has(std::uint64_t sequence) const noexcept { return !batches_.empty() && batches_.front().sequence <= sequence; }
  std::vector<PublishedBatch> From(std::uint64_t sequence) const {
    if (batches_.empty() || sequence > batches_.back().sequence) return {};
    const std::uint64_t first = batches_.front().sequence;
    return {batches_.begin() + static_cast<std::ptrdiff_t>(sequence <= first ? 0 : sequence - first), batches_.end()};
  }

 private:
  const std::size_t most_batches_, most_bytes_;
  std::deque<PublishedBatch> batches_;  // consecutive sequence numbers
  std::size_t bytes_ = 0;
};

}  // namespace kvm::mesh
