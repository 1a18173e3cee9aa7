#include "client/kvctl/cli/observer.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iostream>

#include "proto/wire/protocol_limits.h"

namespace kvm::ctl {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// A lack of descriptors in this process does not mean that kvmd is unreachable.
Error Unreachable(Error error) {
  error.code = Errc::kUnavailable;
  return error;
}

Result<UniqueFd> OpenSocket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (Status possible = CheckSocketPath(path); !possible) return possible.error();
  std::memcpy(address.sun_path, path.c_str(), path.size());
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return Unreachable(SystemError("socket"));
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    Error error = SystemError("can't reach kvmd on " + path);
    error.code = error.sys_errno == EACCES || error.sys_errno == EPERM ? Errc::kPermissionDenied : Errc::kUnavailable;
    return error;
  }
  return socket;
}

}  // namespace

Status CheckSocketPath(const std::string& path) {
  constexpr std::size_t kMax = sizeof(sockaddr_un::sun_path) - 1;
  if (!path.empty() && path.size() <= kMax) return {};
  return MakeError(Errc::kInvalidArgument,
                   "socket path has " + std::to_string(path.size()) + " bytes, 1 to " + std::to_string(kMax) + " are possible");
}

Result<Observer> Observer::Join(const std::string& socket_path, milliseconds timeout, kvmwire::Role role, std::vector<PeerFd>& fds) {
  Result<UniqueFd> socket = OpenSocket(socket_path);
  if (!socket) return socket.error();
  Observer observer;
  observer.socket_ = std::move(*socket);
  observer.timeout_ = timeout;

  kvmwire::ClientMessage message;
  kvmwire::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(kProtocolVersion);
  hello.set_role(role);
  hello.set_client_name("kvctl");
  hello.set_library_version(KVM_VERSION);
  Result<kvmwire::ServerMessage> reply = observer.Ask(std::move(message), &fds);
  if (!reply) return reply.error();
  if (reply->body_case() != kvmwire::ServerMessage::kHelloReply || fds.empty() != (role == kvmwire::MONITOR)) {
    return MakeError(Errc::kProtocol, socket_path + ": the answer to hello is not kvmd's");
  }
  observer.hello_ = std::move(*reply->mutable_hello_reply());
  return observer;
}

Result<Observer> Observer::ConnectAsMonitor(const std::string& socket_path, milliseconds timeout) {
  std::vector<PeerFd> none;
  return Join(socket_path, timeout, kvmwire::MONITOR, none);
}

Result<Observer> Observer::Connect(const std::string& socket_path, milliseconds timeout) {
  std::vector<PeerFd> fds;
  Result<Observer> observer = Join(socket_path, timeout, kvmwire::OBSERVER, fds);
  if (!observer) return observer;
  Result<MappedMemory> memory = MappedMemory::Attach(fds.front().get());
  if (!memory) return memory.error();
  Result<RegistryView> view = RegistryView::Open(std::move(*memory));
  if (!view) return view.error();
  observer->registry_ = std::move(*view);
  return observer;
}

Result<kvmwire::StatusReply> Observer::QueryStatus(bool with_clients, bool with_orphans) {
  kvmwire::StatusQuery query;
  query.set_clients(with_clients);
  query.set_orphans(with_orphans);
  return Query(query);
}

Result<kvmwire::StatusReply> Observer::QueryLeases() {
  kvmwire::StatusQuery query;
  query.set_leases(true);
  return Query(query);
}

std::string CutListNote(const kvmwire::StatusReply& status) {
  if (!status.lists_cut()) return {};
  return "kvmd's answer was too large for one message: its lists are not complete, its totals are";
}

void PrintCutListNote(const kvmwire::StatusReply& status) {
  if (const std::string note = CutListNote(status); !note.empty()) std::cerr << "kvctl: " << note << '\n';
}

Result<kvmwire::StatusReply> Observer::Query(const kvmwire::StatusQuery& query) {
  kvmwire::ClientMessage message;
  *message.mutable_status_query() = query;
  Result<kvmwire::ServerMessage> reply = Ask(std::move(message), nullptr);
  if (!reply) return reply.error();
  if (reply->body_case() != kvmwire::ServerMessage::kStatusReply)
    return MakeError(Errc::kProtocol, "kvmd answered a status query with something else");
  return std::move(*reply->mutable_status_reply());
}

Result<kvmwire::ReclaimReply> Observer::Reclaim(const kvmwire::Reclaim& request) {
  kvmwire::ClientMessage message;
  *message.mutable_reclaim() = request;
  Result<kvmwire::ServerMessage> reply = Ask(std::move(message), nullptr);
  if (!reply) return reply.error();
  if (reply->body_case() != kvmwire::ServerMessage::kReclaimReply)
    return MakeError(Errc::kProtocol, "kvmd answered a reclaim with something else");
  return std::move(*reply->mutable_reclaim_reply());
}

Result<kvmwire::EvictReply> Observer::Evict(const kvmwire::Evict& request) {
  kvmwire::ClientMessage message;
  *message.mutable_evict() = request;
  Result<kvmwire::ServerMessage> reply = Ask(std::move(message), nullptr);
  if (!reply) return reply.error();
  if (reply->body_case() != kvmwire::ServerMessage::kEvictReply)
    return MakeError(Errc::kProtocol, "kvmd answered an evict with something else");
  return std::move(*reply->mutable_evict_reply());
}

Result<std::chrono::nanoseconds> Observer::Ping() {
  kvmwire::ClientMessage message;
  message.mutable_ping();
  const auto start = steady_clock::now();
  Result<kvmwire::ServerMessage> reply = Ask(std::move(message), nullptr);
  if (!reply) return reply.error();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now() - start);
}

milliseconds Observer::HeartbeatAge() const noexcept {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const std::uint64_t now_ns = static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
  const std::uint64_t beat_ns = registry_.header().heartbeat_ns.load(std::memory_order_relaxed);
  return milliseconds(now_ns > beat_ns ? (now_ns - beat_ns) / 1'000'000 : 0);
}

Result<kvmwire::ServerMessage> Observer::Ask(kvmwire::ClientMessage message, std::vector<PeerFd>* fds) {
  const Deadline deadline = steady_clock::now() + timeout_;
  message.set_request_id(next_request_++);
  if (Status said = Say(message, deadline); !said) return said.error();
  return Await(message.request_id(), deadline, fds);
}

Status Observer::Say(const kvmwire::ClientMessage& message, Deadline deadline) {
  if (Status appended = writer_.Append(message.SerializeAsString()); !appended) return appended;
  for (;;) {
    Result<bool> drained = writer_.Drain(socket_.get());
    if (!drained) {
      // kvmd has closed the connection; a Goodbye with the reason may still be readable.
      if (drained.error().sys_errno == EPIPE) return {};
      return drained.error();
    }
    if (*drained) return {};
    if (Status writable = WaitFor(POLLOUT, deadline); !writable) return writable;
  }
}

Result<kvmwire::ServerMessage> Observer::Await(std::uint64_t request_id, Deadline deadline, std::vector<PeerFd>* fds) {
  for (;;) {
    Result<std::optional<Frame>> frame = reader_.Next();
    if (!frame) return frame.error();
    if (*frame) {
      kvmwire::ServerMessage message;
      if (!message.ParseFromString((*frame)->payload)) return MakeError(Errc::kProtocol, "kvmd sent a message that can't be parsed");
      if (message.body_case() == kvmwire::ServerMessage::kGoodbye) {
        return MakeError(Errc::kUnavailable, "kvmd ended the connection: " + message.goodbye().reason());
      }
      // The refusal of a hello has request id 0.
      if (message.request_id() != request_id && !(message.has_error() && message.request_id() == 0)) continue;
      if (message.has_error()) return MakeError(static_cast<Errc>(message.error().code()), "kvmd refused: " + message.error().message());
      if ((*frame)->lost_fds) return Unreachable(*(*frame)->lost_fds);
      if (fds != nullptr) *fds = std::move((*frame)->fds);
      return message;
    }
    if (Status readable = WaitFor(POLLIN, deadline); !readable) return readable.error();
    Result<ReadOutcome> outcome = reader_.Fill(socket_.get());
    if (!outcome) {
      if (outcome.error().sys_errno == ECONNRESET) return MakeError(Errc::kUnavailable, "kvmd closed the connection");
      return outcome.error();
    }
    if (*outcome == ReadOutcome::kEnd) return MakeError(Errc::kUnavailable, "kvmd closed the connection");
  }
}

Status Observer::WaitFor(short events, Deadline deadline) {
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now()).count();
    if (left <= 0) return MakeError(Errc::kDeadlineExceeded, "kvmd did not answer within " + std::to_string(timeout_.count()) + " ms");
    pollfd poll_fd{socket_.get(), events, 0};
    const int ready = ::poll(&poll_fd, 1, static_cast<int>(std::min<std::int64_t>(left, 60'000)));
    if (ready > 0) return {};
    if (ready < 0 && errno != EINTR) return SystemError("poll");
  }
}

}  // namespace kvm::ctl
