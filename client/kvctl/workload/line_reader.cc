#include "client/kvctl/workload/line_reader.h"

#include <cstring>
#include <utility>

namespace kvm::ctl {
namespace {

constexpr std::size_t kBufferBytes = 256 << 10;

}  // namespace

LineReader::LineReader(Source source, std::size_t max_line_bytes)
    : source_(std::move(source)), max_line_bytes_(max_line_bytes), buffer_(kBufferBytes) {}

Result<bool> LineReader::Next(std::string& line) {
  line.clear();
  for (bool any = false;; any = true) {
    if (begin_ == end_) {
      const Result<std::size_t> got = source_(buffer_);
      if (!got) return got.error();
      begin_ = 0;
      end_ = *got;
      if (end_ == 0) return any;
    }
    const char* const from = buffer_.data() + begin_;
    const auto* const newline = static_cast<const char*>(std::memchr(from, '\n', end_ - begin_));
    const std::size_t count = newline == nullptr ? end_ - begin_ : static_cast<std::size_t>(newline - from);
    if (count > max_line_bytes_ - line.size()) {
      line.append(from, max_line_bytes_ - line.size());
      return MakeError(Errc::kInvalidArgument, "line of more than " + std::to_string(max_line_bytes_) + " bytes");
    }
    line.append(from, count);
    begin_ += count;
    if (newline == nullptr) continue;
    ++begin_;
    return true;
  }
}

}  // namespace kvm::ctl
