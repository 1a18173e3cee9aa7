// LineReader: reads lines of bounded length from a stream of bytes, so that a file with one endless
// line is an error instead of filling the memory.
#pragma once

#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "kvm/error.h"

namespace kvm::ctl {

class LineReader {
 public:
  // Fills a part of the buffer and returns its size; 0: the end.
  using Source = std::function<Result<std::size_t>(std::span<char>)>;

  LineReader(Source source, std::size_t max_line_bytes);

  // Puts the next line into `line`, without its end ("\n"). False: there is none. kInvalidArgument:
  // the line is longer than `max_line_bytes`; `line` has its beginning then. Other codes: the
  // source's error.
  [[nodiscard]] Result<bool> Next(std::string& line);

 private:
  Source source_;
  const std::size_t max_line_bytes_;
  std::vector<char> buffer_;
  std::size_t begin_ = 0, end_ = 0;  // of buffer_, not read yet
};

}  // namespace kvm::ctl
