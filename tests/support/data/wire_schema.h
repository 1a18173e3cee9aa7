// The messages of wire.proto as the file has them: the lite runtime that kvmd uses can't list them.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "tests/catch.h"

namespace kvm::test {

struct WireField {
  std::string type, name;
  int number = 0;
};

// Fields by message. Fails the test if the file can't be read.
inline std::map<std::string, std::vector<WireField>> ReadWireMessages() {
  std::ifstream file(std::string(KVM_TEST_DATA_DIR) + "/../proto/wire/wire.proto");
  REQUIRE(file);
  std::map<std::string, std::vector<WireField>> messages;
  const std::regex begins("^message (\\w+) \\{.*"), field("^.*?(\\w+) (\\w+) = (\\d+);.*");
  std::string current;
  for (std::string line; std::getline(file, line);) {
    std::smatch match;
    const std::string code = line.substr(0, line.find("//"));
    if (std::regex_match(code, match, begins)) messages[current = match[1]];
    if (!current.empty() && std::regex_match(code, match, field)) messages[current].push_back({match[1], match[2], std::stoi(match[3])});
  }
  return messages;
}

inline void AppendVarint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

// A field of bytes, or of a message.
inline std::string WireBytes(int number, const std::string& value) {
  std::string out;
  AppendVarint(out, static_cast<std::uint64_t>(number) << 3 | 2);
  AppendVarint(out, value.size());
  return out + value;
}

}  // namespace kvm::test
