#include "client/kvctl/cli/text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ostream>

namespace kvm::ctl {
namespace {

// The width of a UTF-8 string on a terminal. It counts code points, which is right for the
// characters that kvctl prints.
std::size_t Width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string Pad(const std::string& text, std::size_t width, bool right) {
  const std::size_t have = Width(text);
  const std::string space(width > have ? width - have : 0, ' ');
  return right ? space + text : text + space;
}

struct CodePoint {
  std::uint32_t value = 0;
  std::size_t bytes = 0;  // 0: no valid UTF-8 starts here
};

CodePoint FirstCodePoint(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || bytes > text.size()) return {};
  std::uint32_t value = lead & (0xFFu >> (bytes + 1));
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    value = value << 6 | (byte(i) & 0x3F);
  }
  const bool overlong = (bytes == 3 && value < 0x800) || (bytes == 4 && value < 0x10000);
  const bool surrogate = value >= 0xD800 && value <= 0xDFFF;
  if (overlong || surrogate || value > 0x10FFFF) return {};
  return {value, bytes};
}

bool IsHarmless(std::uint32_t c) {
  const bool control = c < 0x20 || (c >= 0x7F && c < 0xA0);
  const bool turns = c == 0x200E || c == 0x200F || c == 0x061C || (c >= 0x2028 && c <= 0x202E) || (c >= 0x2066 && c <= 0x2069);
  return !control && !turns;
}

}  // namespace

std::string FormatFixed(double value, int decimals) {
  std::array<char, 64> buffer;
  const int length = std::snprintf(buffer.data(), buffer.size(), "%.*f", decimals, value);
  return std::string(buffer.data(), std::min<std::size_t>(static_cast<std::size_t>(std::max(length, 0)), buffer.size() - 1));
}

std::string HumanBytes(std::uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  const bool whole = unit == 0 || value == std::floor(value);
  return FormatFixed(value, whole ? 0 : 1) + " " + kUnits[unit];
}

std::string HumanCount(std::uint64_t count) {
  const std::string digits = std::to_string(count);
  std::string grouped;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped += ',';
    grouped += digits[i];
  }
  return grouped;
}

std::string HumanNanoseconds(double nanoseconds) {
  if (nanoseconds < 1e3) return FormatFixed(nanoseconds, nanoseconds < 100 ? 1 : 0) + " ns";
  if (nanoseconds < 1e6) return FormatFixed(nanoseconds / 1e3, 1) + " µs";
  if (nanoseconds < 1e9) return FormatFixed(nanoseconds / 1e6, 1) + " ms";
  return FormatFixed(nanoseconds / 1e9, 2) + " s";
}

std::string HumanPercent(double part, double whole) {
  if (whole == 0) return "-";
  return FormatFixed(100 * part / whole, 1) + " %";
}

std::string HumanSeconds(std::uint64_t seconds) {
  if (seconds < 60) return std::to_string(seconds) + " s";
  if (seconds < 3600) return std::to_string(seconds / 60) + " min " + std::to_string(seconds % 60) + " s";
  if (seconds < 86400) return std::to_string(seconds / 3600) + " h " + std::to_string(seconds % 3600 / 60) + " min";
  return std::to_string(seconds / 86400) + " d " + std::to_string(seconds % 86400 / 3600) + " h";
}

std::string JoinWithCommas(const std::vector<std::string>& parts) {
  std::string joined;
  for (const std::string& part : parts) joined += (joined.empty() ? "" : ", ") + part;
  return joined;
}

std::string Printable(std::string_view text) {
  std::string safe;
  while (!text.empty()) {
    const CodePoint first = FirstCodePoint(text);
    if (first.bytes == 0 || !IsHarmless(first.value)) {
      safe += '?';
    } else {
      safe += text.substr(0, first.bytes);
    }
    text.remove_prefix(std::max<std::size_t>(first.bytes, 1));
  }
  return safe;
}

std::string HarmlessJson(std::string_view json) {
  std::string safe;
  safe.reserve(json.size());
  while (!json.empty()) {
    const CodePoint first = FirstCodePoint(json);
    if (first.bytes == 0) {
      safe += "\\ufffd";
    } else if (IsHarmless(first.value)) {
      safe += json.substr(0, first.bytes);
    } else {  // all characters that are escaped have at most four hexadecimal digits
      std::array<char, 8> escape;
      std::snprintf(escape.data(), escape.size(), "\\u%04x", static_cast<unsigned>(first.value & 0xFFFF));
      safe += escape.data();
    }
    json.remove_prefix(std::max<std::size_t>(first.bytes, 1));
  }
  return safe;
}

Table::Table(std::vector<std::string> titles) {
  for (std::string& title : titles) {
    const bool right = title.starts_with('>');
    columns_.push_back({right ? title.substr(1) : std::move(title), right});
  }
}

void Table::Add(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

void Table::Print(std::ostream& out) const {
  std::vector<std::size_t> widths;
  for (std::size_t c = 0; c < columns_.size(); ++c) {
    std::size_t width = Width(columns_[c].title);
    for (const auto& row : rows_) width = std::max(width, Width(row[c]));
    widths.push_back(width);
  }
  const auto print_row = [&](auto cell) {
    std::string line;
    for (std::size_t c = 0; c < columns_.size(); ++c) line += (c == 0 ? "" : "  ") + Pad(cell(c), widths[c], columns_[c].right);
    line.erase(line.find_last_not_of(' ') + 1);
    out << line << '\n';
  };
  print_row([&](std::size_t c) { return columns_[c].title; });
  for (const auto& row : rows_) print_row([&](std::size_t c) { return row[c]; });
}

void FieldList::Print(std::ostream& out) const {
  std::size_t width = 0;
  for (const auto& [name, value] : fields_) width = std::max(width, Width(name));
  for (const auto& [name, value] : fields_) out << Pad(name, width, false) << "  " << value << '\n';
}

}  // namespace kvm::ctl
