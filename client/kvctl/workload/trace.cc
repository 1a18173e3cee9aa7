#include "client/kvctl/workload/trace.h"

#include <cmath>
#include <string_view>
#include <utility>

#include "client/kvctl/workload/trace_file.h"
#include "client/kvctl/workload/trace_format.h"
#include "client/kvctl/workload/trace_line.h"

namespace kvm::ctl {
namespace {

// kMaxRequestBlocks ids of 20 digits each have 46 MB.
constexpr std::size_t kMaxLineBytes = std::size_t{64} << 20;
constexpr double kMaxTimestampUs = 100.0 * 365 * 86'400 * 1e6;
constexpr std::uint32_t kMaxBlockTokens = 1u << 20;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

Error Wrong(std::string what) { return MakeError(Errc::kInvalidArgument, std::move(what)); }

// Some tools write an id for the partly filled last block, others do not.
bool Fits(std::uint64_t blocks, std::uint64_t input_tokens, std::uint32_t block_tokens) {
  const std::uint64_t full = input_tokens / block_tokens;
  return blocks == full || blocks == full + (input_tokens % block_tokens != 0);
}

Status CheckLengths(const TraceLine& line, std::uint32_t block_tokens) {
  const std::size_t blocks = line.hash_ids.size();
  if (Fits(blocks, line.input_tokens, block_tokens)) return {};
  std::string what = "\"hash_ids\" has " + std::to_string(blocks) + " blocks, an input_length of " + std::to_string(line.input_tokens) +
                     " needs " + std::to_string((line.input_tokens + block_tokens - 1) / block_tokens) + " of " +
                     std::to_string(block_tokens) + " tokens: --block-tokens has to be the trace's block size";
  // Suggests a block size that fits; block sizes are powers of two nearly everywhere. Without a
  // block, every size fits.
  for (std::uint32_t tokens = 1; blocks > 0 && tokens <= kMaxBlockTokens; tokens *= 2) {
    if (!Fits(blocks, line.input_tokens, tokens)) continue;
    what += "; " + std::to_string(tokens) + " would fit this line";
    break;
  }
  return Wrong(std::move(what));
}

// Stores timestamps as written until all are read, since their unit follows from all of them.
class Timestamps {
 public:
  explicit Timestamps(TimestampUnit unit) : unit_(unit) {}

  void Add(double written, std::size_t line) {
    written_.push_back(written);
    lines_.push_back(line);
    if (unit_ == TimestampUnit::kAuto && written != std::floor(written)) fraction_ = true;
  }

  // Errors name the line.
  Status PutInto(std::vector<Request>& requests, const std::string& name) const {
    const double us = UnitUs();
    for (std::size_t i = 0; i < written_.size(); ++i) {
      const double at_us = written_[i] * us;
      if (!(at_us <= kMaxTimestampUs)) {
        return Wrong(name + ":" + std::to_string(lines_[i]) +
                     ": \"timestamp\" is more than 100 years: --timestamp-unit says what it counts");
      }
      requests[i].timestamp_us = static_cast<std::uint64_t>(std::llround(at_us));
    }
    return {};
  }

 private:
  double UnitUs() const noexcept {
    switch (unit_) {
      case TimestampUnit::kAuto: return fraction_ ? 1e6 : 1e3;
      case TimestampUnit::kSeconds: return 1e6;
      case TimestampUnit::kMilliseconds: return 1e3;
      case TimestampUnit::kMicroseconds: return 1;
    }
    return 1;
  }

  const TimestampUnit unit_;
  std::vector<double> written_;
  std::vector<std::size_t> lines_;
  bool fraction_ = false;
};

Result<Request> ParseRequest(std::string_view text, const TraceOptions& options, std::optional<double>& timestamp) {
  Result<TraceLine> line = ParseTraceLine(text, options.timestamps.has_value());
  if (!line) return line.error();
  if (Status lengths = CheckLengths(*line, options.block_tokens); !lengths) return lengths.error();
  timestamp = line->timestamp;
  if (options.timestamps && !timestamp) return Wrong("\"timestamp\" is missing, and --paced follows it");
  return Request{0, line->input_tokens, line->output_tokens, std::move(line->hash_ids)};
}

bool IsEmpty(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

}  // namespace

Result<std::vector<Request>> ParseTrace(LineReader::Source source, const std::string& name, const TraceOptions& options) {
  LineReader reader(std::move(source), kMaxLineBytes);
  std::vector<Request> requests;
  Timestamps timestamps(options.timestamps.value_or(TimestampUnit::kAuto));
  std::string line;
  bool first = true;
  for (std::size_t number = 1;; ++number) {
    const auto at_line = [&](const std::string& what) { return Wrong(name + ":" + std::to_string(number) + ": " + what); };
    const Result<bool> more = reader.Next(line);
    if (!more && more.error().code != Errc::kInvalidArgument) {
      Error error = more.error();
      error.message = name + ": " + error.message;
      return error;
    }
    std::string_view text = line;
    if (number == 1 && text.substr(0, kByteOrderMark.size()) == kByteOrderMark) text.remove_prefix(kByteOrderMark.size());
    if (!IsEmpty(text) && std::exchange(first, false)) {
      if (const std::optional<std::string> other = OtherFormat(text)) return at_line(*other);
    }
    if (!more) return at_line(more.error().message);
    if (!*more) break;
    if (IsEmpty(text)) continue;
    std::optional<double> timestamp;
    Result<Request> request = ParseRequest(text, options, timestamp);
    if (!request) return at_line(request.error().message);
    requests.push_back(std::move(*request));
    if (timestamp) timestamps.Add(*timestamp, number);
    if (options.limit_requests != 0 && requests.size() == options.limit_requests) break;
  }
  if (requests.empty()) return Wrong(name + ": no requests in this file");
  if (Status put = timestamps.PutInto(requests, name); !put) return put.error();
  return requests;
}

Result<std::vector<Request>> ReadTrace(const std::string& path, const TraceOptions& options) {
  Result<LineReader::Source> source = OpenTraceFile(path);
  if (!source) return source.error();
  return ParseTrace(std::move(*source), path == kStandardInput ? "standard input" : path, options);
}

}  // namespace kvm::ctl
