// kvmd's broker, driven by the test: without sockets, and with a clock that the test sets.
#pragma once

#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <deque>
#include <string>
#include <vector>

#include "daemon/broker/broker.h"
#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/kvmd/wire_client.h"

namespace kvm::test {

using daemon::Broker;
using daemon::ClientId;
using daemon::Config;
using daemon::SteadyTime;
using std::chrono::seconds;

inline constexpr std::uint32_t kDeadPid = 4'000'000;  // no kernel assigns such a PID

// A connection that records what kvmd sends.
class FakeConnection final : public daemon::Connection {
 public:
  void Send(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override {
    daemon::SpendOnMessage(message.ByteSizeLong(), fds.size());
    Received received{message, {}};
    for (const int fd : fds) received.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    sent.push_back(std::move(received));
  }
  bool TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override {
    if (kvmd_lacks_descriptors && !fds.empty()) return false;
    Send(message, fds);
    return true;
  }
  std::size_t queued_bytes() const override { return 0; }
  bool HungUp() const override { return false; }
  void Disconnect() override {}

  // The last message of this kind; fails the test if there is none.
  Received Take(kvmwire::ServerMessage::BodyCase kind) {
    for (auto it = sent.begin(); it != sent.end(); ++it) {
      if (it->message.body_case() != kind || it->message.has_error()) continue;
      Received out = std::move(*it);
      sent.erase(it);
      return out;
    }
    for (const Received& received : sent) UNSCOPED_INFO(received.message.error().message());
    FAIL("no such message");
    return {};
  }
  std::string TakeError() {
    for (auto it = sent.begin(); it != sent.end(); ++it) {
      if (!it->message.has_error()) continue;
      const std::string text = it->message.error().message();
      sent.erase(it);
      return text;
    }
    return "no error";
  }
  bool Has(kvmwire::ServerMessage::BodyCase kind) const {
    return std::any_of(sent.begin(), sent.end(), [&](const Received& received) { return received.message.body_case() == kind; });
  }

  std::deque<Received> sent;
  bool kvmd_lacks_descriptors = false;  // as if kvmd had no descriptors left
};

using Body = kvmwire::ServerMessage;

inline void CheckSays(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
}

template <class T>
Config With(T Config::*option, T value) {
  Config config;
  config.*option = value;
  return config;
}

// kvmd without sockets.
class Node {
 public:
  static constexpr std::uint32_t kDefaultUser = 1000;

  // `store` and those behind it, if any, outlive the node.
  explicit Node(const Config& config = {}, daemon::StateStore* store = nullptr, daemon::HugePageMaker* huge_pages = nullptr,
                DescriptorCloser* closer = nullptr, daemon::MemoryFreer* freer = nullptr)
      : config_(Small(config)),
        closer_(closer),
        broker(
            config_, [] {}, store, huge_pages, freer, closer) {}

  ClientId Join(FakeConnection& connection, std::uint32_t pid = kDeadPid, std::uint32_t uid = kDefaultUser,
                kvmwire::Role role = kvmwire::WORKER, UniqueFd process = {}, std::uint64_t instance = 0) {
    const ClientId id = broker.Join(connection, {pid, uid, uid}, std::move(process));
    kvmwire::ClientMessage hello;
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    hello.mutable_hello()->set_client_name("client");
    hello.mutable_hello()->set_wants_payload(true);
    hello.mutable_hello()->set_role(role);
    hello.mutable_hello()->set_instance(instance);
    Handle(id, hello);
    connection.Take(Body::kHelloReply);
    if (role != kvmwire::WORKER) return id;
    kvmwire::ClientMessage model;
    model.mutable_declare_model()->set_spec(LlamaSpec().Canonical());
    Handle(id, model);
    connection.Take(Body::kDeclareModelReply);
    return id;
  }
  void Handle(ClientId client, const kvmwire::ClientMessage& message, const std::vector<int>& fds = {}) {
    std::vector<PeerFd> sent;
    for (const int fd : fds) sent.emplace_back(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), closer_, kDefaultUser);
    KVM_REQUIRE_OK(broker.Handle(client, message, std::move(sent)));
    while (broker.Busy(client)) broker.GoOn(client);
  }
  WireRegion Granted(ClientId client, FakeConnection& connection, const std::string& name, std::uint32_t blocks,
                     std::uint64_t block_bytes = 64) {
    kvmwire::ClientMessage message;
    message.mutable_allocate_memory()->add_size_bytes(GenerationTableBytes(blocks));
    message.mutable_allocate_memory()->add_size_bytes(blocks * block_bytes);
    Handle(client, message);
    WireRegion region(name, LlamaSpec(), blocks, block_bytes, connection.Take(Body::kEmpty).fds);
    region.descriptor.set_outlives_owner(true);
    return region;
  }
  void Register(ClientId client, FakeConnection& connection, WireRegion& region) {
    Handle(client, region.RegisterMessage(), region.fds());
    const kvmwire::RegisterRegionReply reply = connection.Take(Body::kRegisterRegionReply).message.register_region_reply();
    region.row = reply.region();
    region.region_epoch = reply.region_epoch();
  }
  // Publishes all its blocks under keys {block, salt}.
  void Publish(ClientId client, FakeConnection& connection, WireRegion& region, std::uint64_t salt = 1) {
    std::vector<PublishRecord> records;
    for (std::uint32_t block = 0; block < region.descriptor.block_count(); ++block) records.push_back(region.Write(block, {block, salt}));
    Handle(client, region.PublishMessage(records));
    CHECK(connection.Take(Body::kPublishAck).message.publish_ack().inserted() == records.size());
  }
  void WorkAll() {
    while (broker.Work()) continue;
  }
  kvmwire::DomainStatus Domain(std::uint32_t uid = kDefaultUser) { return Status(uid).domains(0); }
  kvmwire::StatusReply Status(std::uint32_t uid = kDefaultUser) {
    FakeConnection connection;
    const ClientId id = Join(connection, 1, uid, kvmwire::OBSERVER);
    kvmwire::ClientMessage query;
    query.mutable_status_query();
    Handle(id, query);
    kvmwire::StatusReply out = connection.Take(Body::kStatusReply).message.status_reply();
    broker.Leave(id, false);
    return out;
  }
  static kvmwire::ClientMessage Adopt(const WireRegion& region) {
    kvmwire::ClientMessage message;
    *message.mutable_adopt_region()->mutable_expected() = region.descriptor;
    return message;
  }

 private:
  static Config Small(Config config) {
    config.max_entries = std::min<std::uint64_t>(config.max_entries, 10'000);
    config.log_level = daemon::LogLevel::kError;
    daemon::SetLogLevel(config.log_level);
    return config;
  }
  const Config config_;
  DescriptorCloser* const closer_;

 public:
  Broker broker;
};

// A process that runs until it is told to end, and its pidfd.
class Sleeper {
 public:
  Sleeper() : pid_(::fork()) {
    if (pid_ == 0) {
      ::pause();
      ::_exit(0);
    }
  }
  ~Sleeper() { Kill(); }
  UniqueFd PidFd() const { return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid_, 0))); }
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  std::uint32_t pid() const { return static_cast<std::uint32_t>(pid_); }

 private:
  pid_t pid_;
};

}  // namespace kvm::test
