// A connection between a simulated client and kvmd's broker, without a socket.
//
// A message arrives in pieces: kvmd sees it when its last piece is there, and a connection that is
// cut loses what has not arrived completely. Descriptors are real ones.
#pragma once

#include <fcntl.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#include "daemon/broker/clients/connection.h"
#include "daemon/registry/region.h"
#include "daemon/system/work_meter.h"
#include "proto/base/unique_fd.h"
#include "proto/wire/wire.pb.h"
#include "tests/simulation/machine.h"

namespace kvm::simulation {

struct ToKvmd {
  kvmwire::ClientMessage message;
  std::vector<PeerFd> fds;
  std::uint32_t pieces = 1;  // that have not arrived
};
struct ToClient {
  kvmwire::ServerMessage message;
  std::vector<UniqueFd> fds;
};

class SimConnection final : public daemon::Connection {
 public:
  explicit SimConnection(Machine& machine) : machine_(machine) {}

  // ---- kvmd's side

  void Send(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override {
    if (!TrySend(message, fds) && message.request_id() != 0) {
      kvmwire::ServerMessage refused;
      refused.set_request_id(message.request_id());
      refused.mutable_error()->set_code(static_cast<std::uint32_t>(Errc::kResourceExhausted));
      TrySend(refused, {});
    }
  }
  bool TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override {
    daemon::SpendOnMessage(message.ByteSizeLong(), fds.size());
    if (machine_.lacks_descriptors && !fds.empty()) return false;
    if (client_closed) return true;
    ToClient sent{message, {}};
    for (const int fd : fds) sent.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    to_client.push_back(std::move(sent));
    return true;
  }
  // As a session does: the next one when the client has read the descriptors of the one before.
  bool TakesAnnouncements() const override { return to_client.empty() || to_client.back().fds.empty(); }
  std::size_t queued_bytes() const override { return to_client.size() * 64; }
  bool HungUp() const override { return client_closed; }
  void Disconnect() override { disconnect(); }

  // ---- both ends

  std::deque<ToKvmd> to_kvmd;
  std::deque<ToClient> to_client;
  bool client_closed = false, kvmd_closed = false;
  bool died = false;  // the client's process has ended
  daemon::ClientId id = 0;
  std::function<void()> disconnect;  // set by kvmd's side

 private:
  Machine& machine_;
};

}  // namespace kvm::simulation
