// A subscriber to kvmd-mesh's events, which asks for what it has missed as vLLM's do.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>
#include <zmq.hpp>

namespace kvm::test {

struct EventMessage {
  std::string topic;
  std::uint64_t sequence = 0;
  std::string payload;
};

class EventSubscriber {
 public:
  EventSubscriber(const std::string& endpoint, const std::string& replay_endpoint);

  // The next message; none: none has come in time.
  std::optional<EventMessage> Receive(std::chrono::milliseconds timeout);
  // All from `sequence` on. Ends the test if the answer has no end.
  std::vector<EventMessage> Replay(std::uint64_t sequence);
  // Sends `parts` as a request for a replay, whatever they are.
  void SendRaw(const std::vector<std::string>& parts);

 private:
  zmq::context_t context_;
  zmq::socket_t subscriber_, replay_;
};

}  // namespace kvm::test
