// EventBatch: the payload of one message of vLLM's KV event stream, being written.
//
// [time, [event, …], data parallel rank]; an event is a map whose "type" names vLLM's class. What
// its fields mean: vllm/distributed/kv_events.py of vLLM 0.32. Hashes are the low halves of keys.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "client/mesh/events/held_blocks.h"
#include "client/mesh/events/msgpack_writer.h"

namespace kvm::mesh {

// Consecutive blocks of one prefix that one memory has come to hold.
struct StoredRun {
  Media medium = 0;                     // one bit
  std::optional<std::uint64_t> parent;  // hash of the block before; none: there is none
  std::span<const std::uint64_t> hashes;
  std::span<const std::uint32_t> tokens;  // block_tokens for each hash
  std::uint32_t block_tokens = 0;
  std::string_view adapter;  // may be empty
};

class EventBatch {
 public:
  void AddStored(const StoredRun& run);
  void AddRemoved(Media medium, std::span<const std::uint64_t> hashes);
  void AddCleared();

  std::size_t blocks() const noexcept { return blocks_; }
  bool empty() const noexcept { return events_ == 0; }
  // The payload; the batch is empty again. `unix_s`: the time.
  std::string Finish(double unix_s);

 private:
  MsgpackWriter body_;
  std::uint32_t events_ = 0;
  std::size_t blocks_ = 0;
};

}  // namespace kvm::mesh
