// Fields that this kvmd does not know: none of them survives in what it parses, wherever they
// stand.
#include <map>
#include <string>
#include <vector>

#include "daemon/broker/known_fields.h"
#include "tests/catch.h"
#include "tests/support/data/wire_schema.h"

namespace {

using kvm::test::ReadWireMessages;
using kvm::test::WireBytes;
using kvm::test::WireField;

// Of `type` and all that lies in it: the bytes of a message with an unknown field there and nowhere
// else, and the path.
void Places(const std::map<std::string, std::vector<WireField>>& messages, const std::string& type, const std::string& path,
            std::vector<std::pair<std::string, std::string>>& out) {
  out.emplace_back(path, WireBytes(500, "unheard of"));
  for (const WireField& field : messages.at(type)) {
    if (!messages.contains(field.type)) continue;
    std::vector<std::pair<std::string, std::string>> inner;
    Places(messages, field.type, path + "." + field.type, inner);
    for (auto& [place, bytes] : inner) out.emplace_back(place, WireBytes(field.number, bytes));
  }
}

}  // namespace

TEST_CASE("Unknown fields: none is kept of any message that a client sends, at any depth", "[unit]") {
  const auto messages = ReadWireMessages();
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

TEST_CASE("Unknown fields: a known field of another type is dropped as well, and known fields stay", "[unit]") {
  kvmwire::ClientMessage message;
  message.set_request_id(7);
  message.mutable_register_region()->mutable_region()->set_name("pool");
  message.mutable_register_region()->mutable_region()->add_segments()->set_size_bytes(4096);
  const std::string sound = message.SerializeAsString();
  kvmwire::ClientMessage odd;
  // outlives_owner, number 9, is a bool.
  REQUIRE(odd.ParseFromString(sound + WireBytes(4, WireBytes(1, WireBytes(9, std::string(1000, 'x'))))));
  REQUIRE(odd.ByteSizeLong() > 1000);
  kvm::daemon::DiscardUnknownFields(odd);
  CHECK(odd.SerializeAsString() == sound);
}
