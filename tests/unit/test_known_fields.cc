// Fields that this kvmd does not know: none of them survives in what it parses, wherever they stand.
#include <fstream>
#include <map>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "daemon/broker/known_fields.h"
#include "tests/catch.h"

namespace {

struct Field {
  std::string type;
  int number = 0;
};

// The messages of wire.proto, by name.
std::map<std::string, std::vector<Field>> ReadMessages() {
  std::ifstream file(std::string(KVM_TEST_DATA_DIR) + "/../proto/wire/wire.proto");
  REQUIRE(file);
  std::map<std::string, std::vector<Field>> messages;
  const std::regex begins("^message (\\w+) \\{.*"), field("^.*?(\\w+) \\w+ = (\\d+);.*");
  std::string current;
  for (std::string line; std::getline(file, line);) {
    std::smatch match;
    const std::string code = line.substr(0, line.find("//"));
    if (std::regex_match(code, match, begins)) messages[current = match[1]];
    if (!current.empty() && std::regex_match(code, match, field)) messages[current].push_back({match[1], std::stoi(match[2])});
  }
  return messages;
}

void AppendVarint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

std::string Bytes(int number, const std::string& value) {
  std::string out;
  AppendVarint(out, static_cast<std::uint64_t>(number) << 3 | 2);
  AppendVarint(out, value.size());
  return out + value;
}

// Of `type` and all that lies in it: the bytes of a message with an unknown field there and nowhere else, and the path.
void Places(const std::map<std::string, std::vector<Field>>& messages, const std::string& type, const std::string& path,
            std::vector<std::pair<std::string, std::string>>& out) {
  out.emplace_back(path, Bytes(500, "unheard of"));
  for (const Field& field : messages.at(type)) {
    if (!messages.contains(field.type)) continue;
    std::vector<std::pair<std::string, std::string>> inner;
    Places(messages, field.type, path + "." + field.type, inner);
    for (auto& [place, bytes] : inner) out.emplace_back(place, Bytes(field.number, bytes));
  }
}

}  // namespace

TEST_CASE("Unknown fields: none is kept of any message that a client sends, at any depth", "[unit]") {
  const auto messages = ReadMessages();
  REQUIRE(messages.contains("ClientMessage"));
  std::vector<std::pair<std::string, std::string>> places;
  Places(messages, "ClientMessage", "ClientMessage", places);
  REQUIRE(places.size() > 20);
  for (const auto& [place, bytes] : places) {
    INFO(place);
    kvmwire::ClientMessage message;
    REQUIRE(message.ParseFromString(bytes));
    REQUIRE(message.SerializeAsString().find("unheard of") != std::string::npos);
    kvm::daemon::DiscardUnknownFields(message);
    CHECK(message.SerializeAsString().find("unheard of") == std::string::npos);
  }
}

TEST_CASE("Unknown fields: a known field of another type goes as well, and what is known stays", "[unit]") {
  kvmwire::ClientMessage message;
  message.set_request_id(7);
  message.mutable_register_region()->mutable_region()->set_name("pool");
  message.mutable_register_region()->mutable_region()->add_segments()->set_size_bytes(4096);
  const std::string sound = message.SerializeAsString();
  kvmwire::ClientMessage odd;
  // outlives_owner, number 9, is a bool.
  REQUIRE(odd.ParseFromString(sound + Bytes(4, Bytes(1, Bytes(9, std::string(1000, 'x'))))));
  REQUIRE(odd.ByteSizeLong() > 1000);
  kvm::daemon::DiscardUnknownFields(odd);
  CHECK(odd.SerializeAsString() == sound);
}
