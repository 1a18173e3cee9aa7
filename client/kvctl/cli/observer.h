// Observer: kvctl's connection to kvmd in the role OBSERVER, or MONITOR. Its calls block, up to a
// deadline; an observer maps the registry.
//
// Reading the registry needs no further round trips. kvmd may write it at any time; RegistryView
// returns consistent copies of rows and slots. Movable; not thread-safe.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"
#include "proto/shm/registry_view.h"
#include "proto/wire/frame.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// kInvalidArgument: no socket can have this path.
[[nodiscard]] Status CheckSocketPath(const std::string& path);

class Observer {
 public:
  // kUnavailable: nothing listens on the socket, or kvmd ended the connection (the reason is
  // given).
  // kDeadlineExceeded: no answer within `timeout`. kPermissionDenied: the socket's mode.
  // kVersionMismatch, kProtocol: another version, or not a kvmd. Any other code: kvmd's answer.
  [[nodiscard]] static Result<Observer> Connect(const std::string& socket_path, std::chrono::milliseconds timeout);

  // In no domain, so that none is made for this user, and without a registry. Only Query and Ping
  // may be called then.
  [[nodiscard]] static Result<Observer> ConnectAsMonitor(const std::string& socket_path, std::chrono::milliseconds timeout);

  const kvmwire::HelloReply& hello() const noexcept { return hello_; }
  const RegistryView& registry() const noexcept { return registry_; }  // empty for a monitor

  [[nodiscard]] Result<kvmwire::StatusReply> QueryStatus(bool with_clients, bool with_orphans = false);
  [[nodiscard]] Result<kvmwire::StatusReply> QueryLeases();
  [[nodiscard]] Result<kvmwire::StatusReply> Query(const kvmwire::StatusQuery& query);
  // Waits for importers as long as the request says.
  [[nodiscard]] Result<kvmwire::ReclaimReply> Reclaim(const kvmwire::Reclaim& request);
  [[nodiscard]] Result<kvmwire::EvictReply> Evict(const kvmwire::Evict& request);
  // Round trip of an empty request.
  [[nodiscard]] Result<std::chrono::nanoseconds> Ping();

  // The time since kvmd last updated its heartbeat in shared memory.
  std::chrono::milliseconds HeartbeatAge() const noexcept;

 private:
  using Deadline = std::chrono::steady_clock::time_point;

  [[nodiscard]] static Result<Observer> Join(const std::string& socket_path, std::chrono::milliseconds timeout, kvmwire::Role role,
                                             std::vector<PeerFd>& fds);
  [[nodiscard]] Status Say(const kvmwire::ClientMessage& message, Deadline deadline);
  [[nodiscard]] Result<kvmwire::ServerMessage> Ask(kvmwire::ClientMessage message, std::vector<PeerFd>* fds);
  [[nodiscard]] Result<kvmwire::ServerMessage> Await(std::uint64_t request_id, Deadline deadline, std::vector<PeerFd>* fds);
  [[nodiscard]] Status WaitFor(short events, Deadline deadline);

  UniqueFd socket_;
  FrameReader reader_;
  FrameWriter writer_;
  std::chrono::milliseconds timeout_{0};
  std::uint64_t next_request_ = 1;
  kvmwire::HelloReply hello_;
  RegistryView registry_;
};

// A line for the operator where kvmd's answer would not fit into one message, so that its lists
// lack clients, leases, orphans or domains (its totals are whole); else empty.
std::string CutListNote(const kvmwire::StatusReply& status);
// Prints that line, if there is one, to standard error.
void PrintCutListNote(const kvmwire::StatusReply& status);

// A kvmd whose heartbeat is older than this is not healthy (kvmd writes it every 50 ms).
inline constexpr std::chrono::milliseconds kHeartbeatLimit{2000};

}  // namespace kvm::ctl
