// The protocol spoken by hand: for what libkvclient would never send, and for looking at kvmd without it.
// Blocking, every wait bounded.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <vector>

#include "proto/frame.h"
#include "proto/registry_view.h"
#include "proto/wire.pb.h"

namespace kvm::test {

struct WireMessage {
  kvmwire::ServerMessage message;
  std::vector<UniqueFd> fds;
};

class WireConnection {
 public:
  [[nodiscard]] static Result<WireConnection> Connect(const std::string& socket_path);

  int socket() const noexcept { return socket_.get(); }
  [[nodiscard]] Status Send(const kvmwire::ClientMessage& message, const std::vector<int>& fds = {});
  // Empty: nothing within `timeout`, or the connection has ended.
  std::optional<WireMessage> Receive(std::chrono::milliseconds timeout = std::chrono::seconds(5));
  // Sends `message` as a request and waits for its reply; announcements meanwhile go to `announced`.
  std::optional<WireMessage> Call(kvmwire::ClientMessage message, const std::vector<int>& fds = {});

  // Hello; maps the registry. kProtocol: kvmd refused or sent something else.
  [[nodiscard]] Result<RegistryView> Hello(kvmwire::Role role, const std::string& name, bool wants_payload = false);

  std::vector<WireMessage> announced;

 private:
  UniqueFd socket_;
  FrameReader reader_;
  FrameWriter writer_;
  std::uint64_t next_request_ = 1;
};

// kvmd seen from outside: its registry and what it tells operators.
class RegistryProbe {
 public:
  explicit RegistryProbe(const std::string& socket_path);

  const RegistryView& registry() const noexcept { return registry_; }
  std::uint64_t live_entries() const noexcept { return registry_.header().live_entries.load(); }
  std::uint64_t live_regions() const noexcept { return registry_.header().live_regions.load(); }
  std::uint64_t live_models() const noexcept { return registry_.header().live_models.load(); }
  // Rows of the region table that are in use, of owner `pid` if it is not 0.
  std::size_t RegionRows(pid_t pid = 0) const;
  // Index slots in use, counted one by one.
  std::uint64_t CountSlots() const;
  kvmwire::StatusReply Status(bool clients = false);

 private:
  WireConnection connection_;
  RegistryView registry_;
};

}  // namespace kvm::test
