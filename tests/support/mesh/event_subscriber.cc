#include "tests/support/mesh/event_subscriber.h"

#include <iterator>
#include <zmq_addon.hpp>

#include "tests/catch.h"

namespace kvm::test {
namespace {

constexpr int kPatienceMs = 60'000;

std::uint64_t FromBigEndian(const zmq::message_t& message) {
  REQUIRE(message.size() == 8);
  std::uint64_t out = 0;
  for (const unsigned char byte : message.to_string()) out = out << 8 | byte;
  return out;
}

}  // namespace

EventSubscriber::EventSubscriber(const std::string& endpoint, const std::string& replay_endpoint)
    : subscriber_(context_, zmq::socket_type::sub), replay_(context_, zmq::socket_type::dealer) {
  subscriber_.set(zmq::sockopt::linger, 0);
  subscriber_.set(zmq::sockopt::subscribe, "kv@");
  subscriber_.connect(endpoint);
  replay_.set(zmq::sockopt::linger, 0);
  replay_.set(zmq::sockopt::rcvtimeo, kPatienceMs);
  replay_.connect(replay_endpoint);
}

std::optional<EventMessage> EventSubscriber::Receive(std::chrono::milliseconds timeout) {
  subscriber_.set(zmq::sockopt::rcvtimeo, static_cast<int>(timeout.count()));
  std::vector<zmq::message_t> parts;
  if (!zmq::recv_multipart(subscriber_, std::back_inserter(parts))) return std::nullopt;
  REQUIRE(parts.size() == 3);
  return EventMessage{parts[0].to_string(), FromBigEndian(parts[1]), parts[2].to_string()};
}

void EventSubscriber::SendRaw(const std::vector<std::string>& parts) {
  for (std::size_t i = 0; i < parts.size(); ++i)
    replay_.send(zmq::buffer(parts[i]), i + 1 < parts.size() ? zmq::send_flags::sndmore : zmq::send_flags::none);
}

std::vector<EventMessage> EventSubscriber::Replay(std::uint64_t sequence) {
  std::string number;
  for (int shift = 56; shift >= 0; shift -= 8) number.push_back(static_cast<char>(sequence >> shift));
  SendRaw({"", number});
  std::vector<EventMessage> out;
  for (;;) {
    std::vector<zmq::message_t> parts;
    REQUIRE(zmq::recv_multipart(replay_, std::back_inserter(parts)));
    REQUIRE(parts.size() == 4);
    CHECK(parts[0].empty());
    const std::uint64_t number_of = FromBigEndian(parts[2]);
    if (number_of == ~std::uint64_t{0}) return out;
    out.push_back({parts[1].to_string(), number_of, parts[3].to_string()});
  }
}

}  // namespace kvm::test
