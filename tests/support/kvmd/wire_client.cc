#include "tests/support/kvmd/wire_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "proto/wire/protocol_limits.h"

namespace kvm::test {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

OwnedMemory Must(Result<OwnedMemory> memory) {
  if (!memory) {
    std::cerr << "memory for a test: " << memory.error().ToString() << std::endl;
    std::abort();
  }
  return std::move(*memory);
}

bool Wait(int fd, short events, steady_clock::time_point deadline) {
  const auto left = std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()).count();
  pollfd poll_fd{fd, events, 0};
  return ::poll(&poll_fd, 1, static_cast<int>(std::max<std::int64_t>(left, 0))) == 1;
}

}  // namespace

Result<WireClient> WireClient::Connect(const std::string& socket_path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, socket_path.c_str(), sizeof(address.sun_path) - 1);
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return SystemError("socket");
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0)
    return SystemError("connect " + socket_path);
  return WireClient(std::move(socket));
}

Status WireClient::Send(const kvmwire::ClientMessage& message, const std::vector<int>& fds) {
  FrameWriter writer;
  if (Status appended = writer.Append(message.SerializeAsString(), fds); !appended) return appended;
  const auto deadline = steady_clock::now() + kPatience;
  for (;;) {
    const Result<bool> done = writer.Drain(socket_.get());
    if (!done) return done.error();
    if (*done) return {};
    if (!Wait(socket_.get(), POLLOUT, deadline)) return MakeError(Errc::kDeadlineExceeded, "kvmd does not read");
  }
}

ssize_t WireClient::SendRaw(std::string_view bytes, const std::vector<int>& fds) {
  iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()), 0);
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  return ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
}

Result<Received> WireClient::Receive(milliseconds patience) {
  const auto deadline = steady_clock::now() + patience;
  for (;;) {
    Result<std::optional<Frame>> frame = reader_.Next();
    if (!frame) return frame.error();
    if (*frame) {
      Received received;
      if (!received.message.ParseFromString((*frame)->payload)) return MakeError(Errc::kProtocol, "unreadable message from kvmd");
      for (PeerFd& fd : (*frame)->fds) received.fds.push_back(std::move(fd));
      return received;
    }
    if (!Wait(socket_.get(), POLLIN, deadline)) return MakeError(Errc::kDeadlineExceeded, "nothing came");
    Result<ReadOutcome> outcome = reader_.Fill(socket_.get());
    if (!outcome && outcome.error().sys_errno == ECONNRESET) return MakeError(Errc::kUnavailable, "connection reset");
    if (!outcome) return outcome.error();
    if (*outcome == ReadOutcome::kEnd) return MakeError(Errc::kUnavailable, "connection ended");
  }
}

Result<Received> WireClient::Call(kvmwire::ClientMessage message, const std::vector<int>& fds) {
  const bool publish = message.has_publish();
  if (!publish) message.set_request_id(next_request_++);
  if (Status sent = Send(message, fds); !sent) return sent.error();
  const auto deadline = steady_clock::now() + kPatience;
  for (;;) {
    Result<Received> received = Receive(std::chrono::duration_cast<milliseconds>(deadline - steady_clock::now()));
    if (!received) return received;
    const kvmwire::ServerMessage& reply = received->message;
    if (reply.has_goodbye()) return MakeError(Errc::kUnavailable, reply.goodbye().reason());
    const bool answers = publish ? reply.has_publish_ack() || reply.has_error() : reply.request_id() == message.request_id();
    if (answers && reply.has_error()) return MakeError(static_cast<Errc>(reply.error().code()), reply.error().message());
    if (answers) return received;
    announced.push_back(std::move(*received));
  }
}

Result<Received> WireClient::Announcement(milliseconds patience) {
  if (announced.empty()) return Receive(patience);
  Received first = std::move(announced.front());
  announced.pop_front();
  return first;
}

std::string WireClient::ReadGoodbye(milliseconds patience) {
  std::string reason;
  for (;;) {
    Result<Received> received = Receive(patience);
    if (!received) return received.error().code == Errc::kDeadlineExceeded ? "still open" : reason;
    if (received->message.has_goodbye()) reason = received->message.goodbye().reason();
  }
}

Result<Received> WireClient::Hello(const std::string& name, kvmwire::Role role, bool wants_payload) {
  kvmwire::ClientMessage message;
  kvmwire::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(kProtocolVersion);
  hello.set_role(role);
  hello.set_client_name(name);
  hello.set_wants_payload(wants_payload);
  hello.set_library_version("test");
  return Call(std::move(message));
}

Result<std::uint32_t> WireClient::DeclareModel(const ModelSpec& spec) {
  kvmwire::ClientMessage message;
  message.mutable_declare_model()->set_spec(spec.Canonical());
  Result<Received> reply = Call(std::move(message));
  if (!reply) return reply.error();
  return reply->message.declare_model_reply().model();
}

Result<kvmwire::StatusReply> WireClient::QueryStatus(bool clients) {
  kvmwire::ClientMessage message;
  message.mutable_status_query()->set_clients(clients);
  Result<Received> reply = Call(std::move(message));
  if (!reply) return reply.error();
  return reply->message.status_reply();
}

Result<Received> WireClient::AllocateMemory(const std::vector<std::uint64_t>& size_bytes) {
  kvmwire::ClientMessage message;
  message.mutable_allocate_memory();
  for (const std::uint64_t bytes : size_bytes) message.mutable_allocate_memory()->add_size_bytes(bytes);
  return Call(message);
}

WireRegion::WireRegion(const std::string& name, const ModelSpec& spec, std::uint32_t blocks, std::uint64_t block_bytes,
                       std::vector<UniqueFd> memory)
    : generation_memory(Must(memory.empty() ? OwnedMemory::Create("generations", GenerationTableBytes(blocks))
                                            : OwnedMemory::Take(std::move(memory[0]), GenerationTableBytes(blocks)))),
      payload(Must(memory.empty() ? OwnedMemory::Create("payload", blocks * block_bytes)
                                  : OwnedMemory::Take(std::move(memory[1]), blocks * block_bytes))) {
  generations = GenerationWriter::Format({generation_memory.data(), generation_memory.size()}, blocks);
  const Fingerprint fingerprint = spec.ComputeFingerprint();
  descriptor.set_name(name);
  descriptor.set_fingerprint(fingerprint.bytes.data(), fingerprint.bytes.size());
  for (const std::uint32_t number : {0u, spec.tp_size, 0u, spec.pp_size, 0u}) descriptor.add_shard(number);
  descriptor.set_handle_kind(1);
  descriptor.set_block_count(blocks);
  descriptor.add_segments()->set_size_bytes(blocks * block_bytes);
  kvmwire::GeometryPart& part = *descriptor.add_parts();
  part.set_chunk_bytes(block_bytes);
  part.set_block_stride(block_bytes);
  part.set_count(1);
}

kvmwire::ClientMessage WireRegion::RegisterMessage() const {
  kvmwire::ClientMessage message;
  *message.mutable_register_region()->mutable_region() = descriptor;
  return message;
}

Status WireRegion::Register(WireClient& client) {
  Result<Received> reply = client.Call(RegisterMessage(), fds());
  if (!reply) return reply.error();
  row = reply->message.register_region_reply().region();
  region_epoch = reply->message.register_region_reply().region_epoch();
  return {};
}

PublishRecord WireRegion::Write(std::uint32_t block, const BlockKey& key) {
  const Generation write = generations.BeginWrite(block);
  generations.FinishWrite(block, write);
  return {key, 0, write + 1, block, 0};
}

kvmwire::ClientMessage WireRegion::PublishMessage(const std::vector<PublishRecord>& records) const {
  kvmwire::ClientMessage message;
  kvmwire::Publish& publish = *message.mutable_publish();
  publish.set_region(row);
  publish.set_region_epoch(region_epoch);
  publish.set_sequence(1);
  publish.set_records(records.data(), records.size() * sizeof(PublishRecord));
  return message;
}

Result<kvmwire::PublishAck> WireRegion::Publish(WireClient& client, const std::vector<PublishRecord>& records) const {
  Result<Received> reply = client.Call(PublishMessage(records));
  if (!reply) return reply.error();
  return reply->message.publish_ack();
}

kvmwire::ClientMessage WireRegion::UnregisterMessage(std::uint32_t ack_timeout_ms) const {
  kvmwire::ClientMessage message;
  kvmwire::UnregisterRegion& unregister = *message.mutable_unregister_region();
  unregister.set_region(row);
  unregister.set_region_epoch(region_epoch);
  unregister.set_ack_timeout_ms(ack_timeout_ms);
  return message;
}

}  // namespace kvm::test
