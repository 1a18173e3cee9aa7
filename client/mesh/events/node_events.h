// NodeEvents: publishes what this node holds for routers that route by prefix (docs/MESH.md), in
// the format of vLLM's KV events over ZeroMQ.
//
// The stream tells the token ids of prompts to every process that can connect. ZeroMQ is optional
// at build time; zmq_events.cc or no_events.cc is built.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "client/mesh/events/event_feed.h"
#include "kvm/error.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

struct EventSettings {
  // tcp://ADDRESS:PORT or ipc:///PATH, of a PUB socket; empty: nothing is published
  std::string endpoint;
  // The same, of a ROUTER socket; empty: what a subscriber misses is lost to it
  std::string replay;
  std::string model;  // FeedOptions::model
  std::uint64_t most_blocks = FeedOptions().most_blocks;
  bool unencrypted = false;  // addresses of other machines are allowed
};

// kInvalidArgument, the option named: not such an endpoint, an address that is not of the loopback
// without `unencrypted`, or some of the options without the one that they need.
[[nodiscard]] Status CheckEventSettings(const EventSettings& settings);

// Thread-safe. No call waits for a socket.
class NodeEvents {
 public:
  virtual ~NodeEvents() = default;

  // What has changed in what the node holds, in turn.
  virtual void Use(HeldChanges changes) = 0;
  // Whether changes were lost since this was asked, for lack of memory, or because too many waited:
  // Use is wanted with all that the node holds.
  virtual bool WantsAgain() noexcept = 0;
  // False: too many descriptions wait to be taken; this one is lost.
  virtual bool Describe(BlockDescription description) = 0;
  virtual void Describe(kvmmesh::EventStatus& out) const = 0;
};

// Binds the sockets, and publishes on a thread of its own from then on. kAlreadyExists,
// kPermissionDenied, kSystem: a socket can't be bound. kUnsupported: built without ZeroMQ.
[[nodiscard]] Result<std::unique_ptr<NodeEvents>> StartEvents(const EventSettings& settings, const std::string& node);

}  // namespace kvm::mesh
