// EventSockets: the ZeroMQ sockets of a stream of events: PUB for what is new, ROUTER for what a
// subscriber has missed, both as vLLM's ZmqEventPublisher has them.
//
//   published:      topic | sequence number, 8 bytes, the highest first | payload
//   replay request: (identity) | empty | first sequence number wanted, 8 bytes
//   replay answer:  (identity) | empty | topic | sequence number | payload, for each; at the end
//                   (identity) | empty | empty | -1 | empty
//
// Used by one thread. Batches share their bytes with the sockets, which send on threads of their
// own. What a subscriber does not read in time is dropped for it, and its replay is broken off.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>
#include <zmq.hpp>

#include "client/mesh/events/event_ring.h"
#include "kvm/error.h"

namespace kvm::mesh {

class EventSockets {
 public:
  // kAlreadyExists: the endpoint is in use. kPermissionDenied, kSystem. `replay`: empty: there is
  // none.
  [[nodiscard]] static Result<std::unique_ptr<EventSockets>> Bind(const std::string& endpoint, const std::string& replay);

  // What they are bound to, ports that were left to the kernel named.
  const std::string& endpoint() const noexcept { return endpoint_; }
  const std::string& replay_endpoint() const noexcept { return replay_endpoint_; }

  // Until a replay is asked for, `wake` can be read, or the time has passed.
  void Wait(int wake, std::chrono::milliseconds timeout);
  void Publish(const PublishedBatch& batch);
  // Answers requests that have come in, a bounded number.
  void AnswerReplays(const std::function<std::vector<PublishedBatch>(std::uint64_t sequence)>& replay);

 private:
  EventSockets() = default;
  bool AnswerNext(const std::function<std::vector<PublishedBatch>(std::uint64_t sequence)>& replay);
  bool SendTo(const std::string& identity, const std::shared_ptr<const std::string>& topic, std::uint64_t sequence,
              const std::shared_ptr<const std::string>& payload);

  zmq::context_t context_{1};
  zmq::socket_t publisher_, replay_;
  std::string endpoint_, replay_endpoint_;
};

}  // namespace kvm::mesh
