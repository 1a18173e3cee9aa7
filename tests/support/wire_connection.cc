#include "tests/support/wire_connection.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <utility>

#include "proto/protocol_limits.h"
#include "tests/catch.h"

namespace kvm::test {
namespace {

using Clock = std::chrono::steady_clock;

bool WaitFor(int socket, short events, Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  pollfd wait{socket, events, 0};
  return left > 0 && ::poll(&wait, 1, static_cast<int>(left)) > 0;
}

}  // namespace

Result<WireConnection> WireConnection::Connect(const std::string& socket_path) {
  WireConnection connection;
  connection.socket_.Reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  socket_path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (::connect(connection.socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return SystemError("connect to " + socket_path);
  }
  return connection;
}

Status WireConnection::Send(const kvmwire::ClientMessage& message, const std::vector<int>& fds) {
  if (Status appended = writer_.Append(message.SerializeAsString(), fds); !appended) return appended;
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(10);
  for (;;) {
    const Result<bool> drained = writer_.Drain(socket_.get());
    if (!drained) return drained.error();
    if (*drained) return {};
    if (!WaitFor(socket_.get(), POLLOUT, deadline)) return MakeError(Errc::kDeadlineExceeded, "kvmd does not read");
  }
}

std::optional<WireMessage> WireConnection::Receive(std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  for (;;) {
    Result<std::optional<Frame>> frame = reader_.Next();
    if (!frame) return std::nullopt;
    if (*frame) {
      WireMessage out;
      if (!out.message.ParseFromString((*frame)->payload)) return std::nullopt;
      out.fds = std::move((*frame)->fds);
      return out;
    }
    if (!WaitFor(socket_.get(), POLLIN, deadline)) return std::nullopt;
    const Result<ReadOutcome> outcome = reader_.Fill(socket_.get());
    if (!outcome || *outcome == ReadOutcome::kEnd) return std::nullopt;
  }
}

std::optional<WireMessage> WireConnection::Call(kvmwire::ClientMessage message, const std::vector<int>& fds) {
  const std::uint64_t id = next_request_++;
  message.set_request_id(id);
  if (!Send(message, fds)) return std::nullopt;
  for (;;) {
    std::optional<WireMessage> reply = Receive();
    if (!reply || reply->message.request_id() == id) return reply;
    announced.push_back(std::move(*reply));
  }
}

Result<RegistryView> WireConnection::Hello(kvmwire::Role role, const std::string& name, bool wants_payload) {
  kvmwire::ClientMessage message;
  kvmwire::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(kProtocolVersion);
  hello.set_role(role);
  hello.set_client_name(name);
  hello.set_wants_payload(wants_payload);
  const std::optional<WireMessage> reply = Call(std::move(message));
  if (!reply) return MakeError(Errc::kProtocol, "no reply to hello");
  if (reply->message.has_error()) return MakeError(static_cast<Errc>(reply->message.error().code()), reply->message.error().message());
  if (reply->fds.size() != 1) return MakeError(Errc::kProtocol, "no registry with the reply to hello");
  Result<MappedMemory> memory = MappedMemory::Attach(reply->fds.front().get());
  if (!memory) return memory.error();
  return RegistryView::Open(std::move(*memory));
}

RegistryProbe::RegistryProbe(const std::string& socket_path) {
  Result<WireConnection> connection = WireConnection::Connect(socket_path);
  KVM_REQUIRE_OK(connection);
  connection_ = std::move(*connection);
  Result<RegistryView> registry = connection_.Hello(kvmwire::OBSERVER, "probe");
  KVM_REQUIRE_OK(registry);
  registry_ = std::move(*registry);
}

std::size_t RegistryProbe::RegionRows(pid_t pid) const {
  std::size_t count = 0;
  layout::RegionInfo info;
  for (std::uint32_t row = 0; row < registry_.region_rows(); ++row) {
    if (registry_.ReadRegion(row, info) && (pid == 0 || info.owner_pid == static_cast<std::uint32_t>(pid))) ++count;
  }
  return count;
}

std::uint64_t RegistryProbe::CountSlots() const {
  std::uint64_t count = 0;
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < registry_.index().slots(); ++slot) count += registry_.index().ReadSlot(slot, entry);
  return count;
}

kvmwire::StatusReply RegistryProbe::Status(bool clients) {
  kvmwire::ClientMessage message;
  message.mutable_status_query()->set_clients(clients);
  const std::optional<WireMessage> reply = connection_.Call(std::move(message));
  REQUIRE(reply.has_value());
  REQUIRE(reply->message.has_status_reply());
  return reply->message.status_reply();
}

}  // namespace kvm::test
