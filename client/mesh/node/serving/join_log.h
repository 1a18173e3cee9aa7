// JoinLog: the latest joins of a node's workers and why they brought no more, for
// `kvctl mesh explain`. JoinService writes it. Not thread-safe.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

namespace kvm::mesh {

struct JoinRecord {
  std::chrono::steady_clock::time_point ended{};
  std::chrono::milliseconds took{};
  std::size_t keys = 0, before = 0, fetched = 0;
  std::string sources;  // nodes that were asked, with commas
  std::string reason;
};

class JoinLog {
 public:
  static constexpr std::size_t kKept = 32;

  void Add(JoinRecord record) {
    records_.push_front(std::move(record));
    if (records_.size() > kKept) records_.pop_back();
  }
  // The newest first.
  const std::deque<JoinRecord>& records() const noexcept { return records_; }

 private:
  std::deque<JoinRecord> records_;
};

}  // namespace kvm::mesh
