// A server that stands for kvmd's host cache: it grants each client a slab, and a slot of it for
// each block that is offered. All other requests are refused.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>

#include "kvclient/client.h"
#include "proto/shm/sealed_memory.h"
#include "proto/wire/frame.h"
#include "proto/wire/publish_record.h"
#include "proto/wire/wire.pb.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {

class StoringServer {
 public:
  StoringServer(std::uint32_t slots, std::uint64_t slot_bytes) : slots_(slots), slot_bytes_(slot_bytes) {
    Result<UniqueFd> slab = CreateGrantable("kvm:test:slab", slots * slot_bytes);
    KVM_REQUIRE_OK(slab);
    slab_ = std::move(*slab);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof(address.sun_path) - 1);
    listener_.Reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    REQUIRE(::listen(listener_.get(), 1) == 0);
    thread_ = std::thread([this] { Run(); });
  }
  ~StoringServer() {
    stop_ = true;
    thread_.join();
  }

  ClientOptions Options() const {
    ClientOptions options;
    options.socket_path = path();
    options.reconnect_min = options.reconnect_max = std::chrono::milliseconds(1);
    return options;
  }

 private:
  std::string path() const { return directory_ / "s"; }
  bool Readable(int fd) const {
    pollfd ready{fd, POLLIN, 0};
    return ::poll(&ready, 1, 20) == 1;
  }

  void Run() {
    while (!stop_) {
      if (!Readable(listener_.get())) continue;
      const UniqueFd connection(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (connection) Serve(connection.get());
    }
  }

  void Serve(int socket) {
    FrameReader reader;
    FrameWriter writer;
    while (!stop_) {
      if (!writer.Drain(socket)) return;
      if (!Readable(socket)) continue;
      const Result<ReadOutcome> read = reader.Fill(socket);
      if (!read) return;
      for (;;) {
        Result<std::optional<Frame>> frame = reader.Next();
        if (!frame) return;
        if (!*frame) break;
        kvmwire::ClientMessage message;
        if (!message.ParseFromString((*frame)->payload) || !Answer(message, writer)) return;
      }
      if (*read == ReadOutcome::kEnd) return;
    }
  }

  // False: the writer failed.
  bool Answer(const kvmwire::ClientMessage& message, FrameWriter& writer) const {
    kvmwire::ServerMessage reply;
    if (message.has_hello()) {
      reply.mutable_hello_reply()->set_client_id(1);
      reply.mutable_hello_reply()->mutable_host_cache();
      kvmwire::ServerMessage announcement;
      kvmwire::SlabGrant& grant = *announcement.mutable_slab_grant();
      grant.set_region(2);
      grant.set_region_epoch(1);
      grant.set_size_bytes(slots_ * slot_bytes_);
      grant.set_slots(slots_);
      grant.set_slot_bytes(slot_bytes_);
      return writer.Append(reply.SerializeAsString()) && writer.Append(announcement.SerializeAsString(), {slab_.get()});
    }
    if (message.request_id() == 0) return true;
    reply.set_request_id(message.request_id());
    if (!message.has_prepare_store()) {
      reply.mutable_error()->set_code(static_cast<std::uint32_t>(Errc::kInvalidArgument));
      reply.mutable_error()->set_message("refused, with a reason that takes memory");
      return writer.Append(reply.SerializeAsString()).has_value();
    }
    kvmwire::PrepareStoreReply& decision = *reply.mutable_prepare_store_reply();
    const auto count = static_cast<std::uint32_t>(message.prepare_store().records().size() / sizeof(PublishRecord));
    decision.set_decided(count);
    for (std::uint32_t record = 0; record < count; ++record) {
      kvmwire::StoreGrant& grant = *decision.add_grants();
      grant.set_record(record);
      grant.set_region(2);
      grant.set_region_epoch(1);
      grant.set_slot(record % slots_);
      grant.set_generation(1);
    }
    return writer.Append(reply.SerializeAsString()).has_value();
  }

  const std::uint32_t slots_;
  const std::uint64_t slot_bytes_;
  TempDir directory_;
  UniqueFd slab_, listener_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace kvm::test
