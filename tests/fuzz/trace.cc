// Traces of requests, which come from strangers' files: arbitrary bytes, with and without
// timestamps.
//
// Input: u8 options, then the file.
#include <cstring>

#include "client/kvctl/workload/trace.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {

void TraceTarget(Bytes input) {
  Consumer consumer(input);
  const auto choice = consumer.Take<std::uint8_t>();
  ctl::TraceOptions options;
  options.block_tokens = 16;
  options.limit_requests = 100;
  if ((choice & 1) != 0) options.timestamps = static_cast<ctl::TimestampUnit>((choice >> 1) % 4);
  Bytes left = consumer.left();
  const auto source = [&](std::span<char> to) -> Result<std::size_t> {
    const std::size_t bytes = std::min(to.size(), left.size());
    if (bytes > 0) std::memcpy(to.data(), left.data(), bytes);
    left = left.subspan(bytes);
    return bytes;
  };
  const Result<std::vector<ctl::Request>> requests = ctl::ParseTrace(source, "trace", options);
  if (requests && (requests->empty() || requests->size() > 100)) Broken("a trace that is read has requests, as many as asked for");
}

std::vector<std::string> TraceSeeds() {
  const std::string mooncake =
      "{\"timestamp\": 0, \"input_length\": 40, \"output_length\": 5, \"hash_ids\": [0, 1, 2]}\n"
      "{\"timestamp\": 27, \"input_length\": 33, \"output_length\": 5, \"hash_ids\": [0, 1, 7]}\n";
  const std::string qwen =
      "{\"chat_id\": 1, \"parent_chat_id\": -1, \"timestamp\": 61.114, \"input_length\": 20, \"output_length\": 3, \"type\": \"text\", "
      "\"turn\": 1, "
      "\"hash_ids\": [4, 5]}\n";
  return {std::string(1, '\0') + mooncake, "\1" + mooncake, "\1" + qwen, "\3" + qwen};
}

}  // namespace kvm::fuzz
