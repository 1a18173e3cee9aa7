#include "client/kvctl/workload/trace_format.h"

#include <algorithm>
#include <utility>

namespace kvm::ctl {

const char* const kTraceFormats =
    "JSON lines with \"input_length\" and \"hash_ids\", as Mooncake's and Qwen-Bailian's traces are, plain or .gz, are read";

std::optional<std::string> OtherFormat(std::string_view beginning) {
  using namespace std::string_view_literals;
  constexpr std::pair<std::string_view, const char*> kCompressed[] = {{"\x28\xB5\x2F\xFD"sv, "zstd"},
                                                                      {"\xFD"
                                                                       "7zXZ"sv,
                                                                       "xz"},
                                                                      {"BZh"sv, "bzip2"},
                                                                      {"PK\x03\x04"sv, "zip"},
                                                                      {"\x04\x22\x4D\x18"sv, "lz4"}};
  for (const auto& [magic, name] : kCompressed) {
    if (beginning.substr(0, magic.size()) == magic)
      return std::string("compressed by ") + name + ": decompress it into a pipe, and read that with --trace -";
  }
  const std::string read = std::string("; ") + kTraceFormats;
  if (beginning.substr(0, 4) == "PAR1"sv) return "Parquet, not JSON lines" + read;
  const std::size_t first = beginning.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || beginning[first] == '{') return std::nullopt;
  if (beginning[first] == '[') return "a JSON array: conversations as ShareGPT has them have no block ids" + read;
  const auto unprintable = [](char c) { return static_cast<unsigned char>(c) < ' ' && c != '\t' && c != '\r' && c != '\n'; };
  if (std::any_of(beginning.begin(), beginning.end(), unprintable)) return "not text" + read;
  if (beginning.find(',') != std::string_view::npos)
    return "CSV, not JSON: traces of lengths alone, as Azure's and BurstGPT's are, have no block ids" + read;
  return std::nullopt;
}

}  // namespace kvm::ctl
