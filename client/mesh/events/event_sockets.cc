#include "client/mesh/events/event_sockets.h"

#include <sys/stat.h>

#include <cerrno>
#include <memory>
#include <utility>

namespace kvm::mesh {
namespace {

using SharedBytes = std::shared_ptr<const std::string>;

// Messages that wait for one subscriber, as for vLLM's publisher.
constexpr int kPublishedWaiting = 100'000;
// More than all that a replay sends.
constexpr int kReplayWaiting = 20'000;
constexpr int kRepliesAtOnce = 16;
constexpr std::uint64_t kEnd = ~std::uint64_t{0};

std::string BigEndian(std::uint64_t value) {
  std::string out(8, '\0');
  for (int i = 0; i < 8; ++i) out[static_cast<std::size_t>(i)] = static_cast<char>(value >> (56 - 8 * i));
  return out;
}

std::uint64_t FromBigEndian(const zmq::message_t& message) {
  std::uint64_t out = 0;
  for (std::size_t i = 0; i < 8; ++i) out = out << 8 | static_cast<const unsigned char*>(message.data())[i];
  return out;
}

// A message that shares the bytes.
zmq::message_t Share(const SharedBytes& bytes) {
  auto owner = std::make_unique<SharedBytes>(bytes);
  const auto release = [](void*, void* hint) { delete static_cast<SharedBytes*>(hint); };
  // ZeroMQ takes what it does not change as void*.
  zmq::message_t out(const_cast<char*>(bytes->data()), bytes->size(), release, owner.get());
  static_cast<void>(owner.release());
  return out;
}

Error BindError(const std::string& option, const std::string& endpoint, const zmq::error_t& error) {
  const int number = error.num();
  const Errc code = number == EADDRINUSE                  ? Errc::kAlreadyExists
                    : number == EACCES || number == EPERM ? Errc::kPermissionDenied
                                                          : Errc::kSystem;
  return Error{code, option + ": bind " + endpoint + ": " + error.what(), 0};
}

// Throws zmq::error_t. A socket that is a file is this user's only.
std::string BindTo(zmq::socket_t& socket, const std::string& endpoint) {
  socket.set(zmq::sockopt::linger, 0);
  // Not for others: what they are bound to would be spelled as an address of IPv6.
  if (endpoint.starts_with("tcp://[")) socket.set(zmq::sockopt::ipv6, 1);
  const mode_t before = ::umask(0177);
  try {
    socket.bind(endpoint);
  } catch (...) {
    ::umask(before);
    throw;
  }
  ::umask(before);
  return socket.get(zmq::sockopt::last_endpoint);
}

}  // namespace

Result<std::unique_ptr<EventSockets>> EventSockets::Bind(const std::string& endpoint, const std::string& replay) {
  std::unique_ptr<EventSockets> out(new EventSockets);
  try {
    out->publisher_ = zmq::socket_t(out->context_, zmq::socket_type::pub);
    out->publisher_.set(zmq::sockopt::sndhwm, kPublishedWaiting);
    out->endpoint_ = BindTo(out->publisher_, endpoint);
  } catch (const zmq::error_t& error) {
    return BindError("--events", endpoint, error);
  }
  if (replay.empty()) return out;
  try {
    out->replay_ = zmq::socket_t(out->context_, zmq::socket_type::router);
    out->replay_.set(zmq::sockopt::sndhwm, kReplayWaiting);
    // An answer that can't be sent is an error, and not lost in silence.
    out->replay_.set(zmq::sockopt::router_mandatory, true);
    out->replay_endpoint_ = BindTo(out->replay_, replay);
  } catch (const zmq::error_t& error) {
    return BindError("--events-replay", replay, error);
  }
  return out;
}

void EventSockets::Wait(int wake, std::chrono::milliseconds timeout) {
  zmq::pollitem_t items[2] = {{nullptr, wake, ZMQ_POLLIN, 0}, {replay_ ? replay_.handle() : nullptr, 0, ZMQ_POLLIN, 0}};
  try {
    zmq::poll(items, replay_ ? 2 : 1, timeout);
  } catch (const zmq::error_t& error) {
    if (error.num() != EINTR) throw;  // else the caller looks at everything again
  }
}

void EventSockets::Publish(const PublishedBatch& batch) {
  // What needs memory comes first, so that no half of a message is sent.
  zmq::message_t topic = Share(batch.topic), payload = Share(batch.payload);
  zmq::message_t sequence(BigEndian(batch.sequence));
  try {
    publisher_.send(topic, zmq::send_flags::sndmore);
    publisher_.send(sequence, zmq::send_flags::sndmore);
    publisher_.send(payload, zmq::send_flags::none);
  } catch (const zmq::error_t&) {
    return;  // subscribers see the gap in the sequence numbers, and ask for a replay
  }
}

bool EventSockets::SendTo(const std::string& identity, const SharedBytes& topic, std::uint64_t sequence, const SharedBytes& payload) {
  const auto more = zmq::send_flags::sndmore | zmq::send_flags::dontwait;
  zmq::message_t parts[] = {zmq::message_t(identity), zmq::message_t(), Share(topic), zmq::message_t(BigEndian(sequence))};
  zmq::message_t last = Share(payload);
  try {
    // Only the first part can fail for lack of room.
    for (zmq::message_t& part : parts)
      if (!replay_.send(part, more)) return false;
    return replay_.send(last, zmq::send_flags::dontwait).has_value();
  } catch (const zmq::error_t&) {
    return false;  // it has gone
  }
}

bool EventSockets::AnswerNext(const std::function<std::vector<PublishedBatch>(std::uint64_t)>& replay) {
  std::vector<zmq::message_t> parts;
  try {
    do {
      zmq::message_t part;
      if (!replay_.recv(part, zmq::recv_flags::dontwait)) return false;
      if (parts.size() < 4) parts.push_back(std::move(part));
    } while (replay_.get(zmq::sockopt::rcvmore));
  } catch (const zmq::error_t&) {
    return false;
  }
  if (parts.size() != 3 || !parts[1].empty() || parts[2].size() != 8) return true;  // no request
  const std::string identity = parts[0].to_string();
  static const SharedBytes kNothing = std::make_shared<const std::string>();
  for (const PublishedBatch& batch : replay(FromBigEndian(parts[2])))
    if (!SendTo(identity, batch.topic, batch.sequence, batch.payload)) return true;
  SendTo(identity, kNothing, kEnd, kNothing);
  return true;
}

void EventSockets::AnswerReplays(const std::function<std::vector<PublishedBatch>(std::uint64_t)>& replay) {
  for (int i = 0; replay_ && i < kRepliesAtOnce; ++i)
    if (!AnswerNext(replay)) return;
}

}  // namespace kvm::mesh
