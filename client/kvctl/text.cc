#include "client/kvctl/text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <ostream>

namespace kvm::ctl {
namespace {

// Columns a UTF-8 string takes on a terminal, as far as kvctl's own output goes: code points.
std::size_t Width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; }));
}

std::string Pad(const std::string& text, std::size_t width, bool right) {
  const std::size_t have = Width(text);
  const std::string space(width > have ? width - have : 0, ' ');
  return right ? space + text : text + space;
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
  std::string safe(text);
  for (char& c : safe) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7F) c = '?';
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
