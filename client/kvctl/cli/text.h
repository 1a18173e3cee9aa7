// Text output of kvctl: aligned tables, and numbers with units.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

namespace kvm::ctl {

std::string HumanBytes(std::uint64_t bytes);          // "1.5 GiB"
std::string HumanCount(std::uint64_t count);          // "1,234,567"
std::string HumanNanoseconds(double nanoseconds);     // "13.5 µs"
std::string HumanPercent(double part, double whole);  // "36.6 %", "-" of nothing
std::string HumanSeconds(std::uint64_t seconds);      // "3 h 12 min"
std::string FormatFixed(double value, int decimals);  // no exponent, '.' in every locale
std::string JoinWithCommas(const std::vector<std::string>& parts);

// A client-chosen string made safe for a terminal and for JSON: control characters, those that
// change the direction of writing, and every byte that is not part of valid UTF-8 become '?'.
std::string Printable(std::string_view text);

// Makes every string of serialized JSON valid UTF-8 and harmless on a terminal: invalid bytes
// become U+FFFD, and control characters and those that change the direction of writing are escaped.
// `json` may contain any bytes.
std::string HarmlessJson(std::string_view json);

// Columns whose title starts with '>' are aligned to the right (numbers); the mark is not printed.
class Table {
 public:
  explicit Table(std::vector<std::string> titles);
  void Add(std::vector<std::string> cells);  // missing cells are empty, surplus ones are dropped
  bool empty() const noexcept { return rows_.empty(); }
  void Print(std::ostream& out) const;

 private:
  struct Column {
    std::string title;
    bool right = false;
  };
  std::vector<Column> columns_;
  std::vector<std::vector<std::string>> rows_;
};

// Two columns, "name   value", for single records.
class FieldList {
 public:
  void Add(std::string name, std::string value) { fields_.emplace_back(std::move(name), std::move(value)); }
  bool empty() const noexcept { return fields_.empty(); }
  void Print(std::ostream& out) const;

 private:
  std::vector<std::pair<std::string, std::string>> fields_;
};

}  // namespace kvm::ctl
