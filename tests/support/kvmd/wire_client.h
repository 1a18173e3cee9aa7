// A client of kvmd's socket that shares only the wire format with libkvclient: it has blocking
// calls with a deadline, and every way of breaking the protocol. For tests, fault tests and manual
// fuzzing.
#pragma once

#include <chrono>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/model_spec.h"
#include "proto/shm/generation_table.h"
#include "proto/shm/sealed_memory.h"
#include "proto/wire/frame.h"
#include "proto/wire/publish_record.h"
#include "proto/wire/wire.pb.h"

namespace kvm::test {

struct Received {
  kvmwire::ServerMessage message;
  std::vector<UniqueFd> fds;
};

class WireClient {
 public:
  static constexpr std::chrono::milliseconds kPatience{5000};

  // Connects, and sends nothing yet.
  [[nodiscard]] static Result<WireClient> Connect(const std::string& socket_path);
  // Takes over a connection.
  explicit WireClient(UniqueFd socket) : socket_(std::move(socket)) {}

  [[nodiscard]] Status Send(const kvmwire::ClientMessage& message, const std::vector<int>& fds = {});
  // Sends the bytes unchanged in one sendmsg; returns how many the kernel accepted, -1 on error.
  ssize_t SendRaw(std::string_view bytes, const std::vector<int>& fds = {});

  // The next message. kUnavailable: the connection has ended. kDeadlineExceeded: nothing came.
  [[nodiscard]] Result<Received> Receive(std::chrono::milliseconds patience = kPatience);
  // Sends a request and waits for its answer (a PublishAck answers a Publish); announcements before
  // it are added to `announced`. An error reply is returned as that error.
  [[nodiscard]] Result<Received> Call(kvmwire::ClientMessage message, const std::vector<int>& fds = {});
  // The next announcement.
  [[nodiscard]] Result<Received> Announcement(std::chrono::milliseconds patience = kPatience);
  // Reads to the end of the connection; returns the reason of the goodbye, "" without one, and
  // "still open" if the connection does not end.
  std::string ReadGoodbye(std::chrono::milliseconds patience = kPatience);

  [[nodiscard]] Result<Received> Hello(const std::string& name = "test", kvmwire::Role role = kvmwire::WORKER, bool wants_payload = true);
  [[nodiscard]] Result<std::uint32_t> DeclareModel(const ModelSpec& spec);
  [[nodiscard]] Result<kvmwire::StatusReply> QueryStatus(bool clients = true);
  [[nodiscard]] Result<Received> AllocateMemory(const std::vector<std::uint64_t>& size_bytes);

  int fd() const noexcept { return socket_.get(); }
  void Close() { socket_.Reset(); }

  std::deque<Received> announced;

 private:
  UniqueFd socket_;
  FrameReader reader_;
  std::uint64_t next_request_ = 1;
};

// A region as its owner would describe it: sealed generation table and one sealed segment, block by
// block.
// `memory`: granted memory instead of sealed one: generation table, payload.
struct WireRegion {
  WireRegion(const std::string& name, const ModelSpec& spec, std::uint32_t blocks, std::uint64_t block_bytes = 64,
             std::vector<UniqueFd> memory = {});

  std::vector<int> fds() const { return {generation_memory.fd(), payload.fd()}; }
  kvmwire::ClientMessage RegisterMessage() const;
  // Registers the region, and stores its row and epoch.
  [[nodiscard]] Status Register(WireClient& client);
  // Makes `block` readable and returns the record that publishes it under `key`.
  PublishRecord Write(std::uint32_t block, const BlockKey& key);
  kvmwire::ClientMessage PublishMessage(const std::vector<PublishRecord>& records) const;
  [[nodiscard]] Result<kvmwire::PublishAck> Publish(WireClient& client, const std::vector<PublishRecord>& records) const;
  kvmwire::ClientMessage UnregisterMessage(std::uint32_t ack_timeout_ms = 0) const;

  kvmwire::RegionDescriptor descriptor;
  OwnedMemory generation_memory, payload;
  GenerationWriter generations;
  std::uint32_t row = 0, region_epoch = 0;
};

}  // namespace kvm::test
