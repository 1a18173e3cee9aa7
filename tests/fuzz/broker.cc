// Every handler of a live broker, with two honest users beside the one who sends the input: each
// message is parsed from arbitrary bytes or is one of the attacker's own regions' with arbitrary
// numbers. The honest users are answered, and their blocks stay in the index, whatever was sent.
//
// Input: for each message u8 the connection, u8 its descriptors, u16 bytes, then so many bytes of a
// ClientMessage; or time, or the connection's end.
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>
#include <unistd.h>

#include <array>
#include <memory>

#include "daemon/broker/broker.h"
#include "daemon/broker/known_fields.h"
#include "proto/wire/protocol_limits.h"
#include "tests/fuzz/targets.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/kvmd/wire_client.h"

namespace kvm::fuzz {
namespace {

constexpr std::uint32_t kAttacker = 2001, kFirst = 2002, kSecond = 2003, kAdmin = 2004, kBlocks = 8;

class Answers final : public daemon::Connection {
 public:
  void Send(const kvmwire::ServerMessage& message, const std::vector<int>&) override { last_ = message; }
  bool TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override {
    Send(message, fds);
    return true;
  }
  std::size_t queued_bytes() const override { return 0; }
  bool HungUp() const override { return false; }
  void Disconnect() override {}

  const kvmwire::ServerMessage& last() const { return last_; }

 private:
  kvmwire::ServerMessage last_;
};

daemon::Config SmallNode() {
  daemon::Config config;
  config.domain_mode = daemon::DomainMode::kNode;
  config.max_entries = 64;
  config.max_regions = 16;
  config.max_models = 8;
  config.host_cache_bytes = 64 << 10;
  config.host_cache_slab_bytes = 16 << 10;
  config.log_level = daemon::LogLevel::kError;
  config.admins = {kAdmin};
  return config;
}

struct Node {
  Node() : broker(config, [] {}) {
    daemon::SetLogLevel(daemon::LogLevel::kError);
    for (std::size_t i = 0; i < attackers.size(); ++i) ids.push_back(Join(attackers[i], AttackerOf(i)));
    for (int i = 0; i < 2; ++i) {
      const ClientId id = Join(honest[static_cast<std::size_t>(i)], i == 0 ? kFirst : kSecond);
      regions.push_back(std::make_unique<test::WireRegion>("honest", test::LlamaSpec(), kBlocks));
      Answers& answers = honest[static_cast<std::size_t>(i)];
      Send(id, regions.back()->RegisterMessage(), regions.back()->fds());
      regions.back()->row = answers.last().register_region_reply().region();
      regions.back()->region_epoch = answers.last().register_region_reply().region_epoch();
      honest_ids.push_back(id);
      Publish(i);
    }
  }
  using ClientId = daemon::ClientId;

  // The last one is an admin.
  std::uint32_t AttackerOf(std::size_t connection) const { return connection + 1 == attackers.size() ? kAdmin : kAttacker; }

  ClientId Join(Answers& connection, std::uint32_t uid) {
    const ClientId id = broker.Join(connection, {4'000'000, uid, uid}, {});
    kvmwire::ClientMessage hello;
    hello.mutable_hello()->set_protocol_version(kProtocolVersion);
    hello.mutable_hello()->set_client_name("client");
    hello.mutable_hello()->set_wants_payload(true);
    Send(id, hello, {});
    kvmwire::ClientMessage model;
    model.mutable_declare_model()->set_spec(test::LlamaSpec().Canonical());
    Send(id, model, {});
    return id;
  }
  bool Send(ClientId client, const kvmwire::ClientMessage& message, const std::vector<int>& fds) {
    std::vector<PeerFd> sent;
    for (const int fd : fds) sent.emplace_back(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)));
    const bool handled = broker.Handle(client, message, std::move(sent)).has_value();
    while (broker.Busy(client)) broker.GoOn(client);
    return handled;
  }
  // Publishes all blocks of an honest user's anew.
  void Publish(int user) {
    test::WireRegion& region = *regions[static_cast<std::size_t>(user)];
    std::vector<PublishRecord> records;
    for (std::uint32_t block = 0; block < kBlocks; ++block)
      records.push_back(region.Write(block, {block, 7u + static_cast<unsigned>(user)}));
    Send(honest_ids[static_cast<std::size_t>(user)], region.PublishMessage(records),
         region.fds().empty() ? std::vector<int>{} : std::vector<int>{});
    const kvmwire::PublishAck& ack = honest[static_cast<std::size_t>(user)].last().publish_ack();
    if (ack.inserted() != kBlocks) Broken("an honest user's blocks get into the index");
  }
  void Tick(std::uint32_t ms) {
    broker.Tick(now += std::chrono::milliseconds(ms));
    for (int i = 0; i < 1000 && broker.Work(); ++i) continue;
    broker.Sweep();
  }

  const daemon::Config config = SmallNode();
  std::array<Answers, 3> attackers;
  std::array<Answers, 2> honest;
  daemon::Broker broker;
  std::vector<ClientId> ids, honest_ids;
  std::vector<std::unique_ptr<test::WireRegion>> regions;
  daemon::SteadyTime now = std::chrono::steady_clock::now();
};

// What a message may bring: memory of the attacker's own, an honest user's, and no memory at all.
std::vector<int> Descriptors(const Node& node, const test::WireRegion& own, std::uint8_t choice) {
  static const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  switch (choice % 8) {
    case 1: return own.fds();
    case 2: return {own.fds()[0]};
    case 3: return node.regions[0]->fds();
    case 4: return {null, null};
    case 5: return {own.fds()[1], own.fds()[0]};
    case 6: return {own.fds()[0], node.regions[1]->fds()[1]};
    default: return {};
  }
}

}  // namespace

void BrokerTarget(Bytes input) {
  const google::protobuf::LogSilencer quiet;
  Node node;
  test::WireRegion own("own", test::LlamaSpec(), kBlocks);
  Consumer consumer(input);
  for (int messages = 0; messages < 64 && !consumer.empty(); ++messages) {
    const auto connection = consumer.Take<std::uint8_t>();
    const auto descriptors = consumer.Take<std::uint8_t>();
    const std::size_t wanted = consumer.Take<std::uint16_t>();
    const std::size_t bytes = std::min(wanted, consumer.left().size());
    const std::size_t of = connection % node.ids.size();
    if (connection >= 0xF0) {
      node.Tick(bytes == 0 ? 50 : 20'000);
      continue;
    }
    std::string text;
    for (std::size_t i = 0; i < bytes; ++i) text.push_back(static_cast<char>(consumer.Take<std::uint8_t>()));
    kvmwire::ClientMessage message;
    if (!message.ParseFromString(text)) continue;
    daemon::DiscardUnknownFields(message);
    if (node.Send(node.ids[of], message, Descriptors(node, own, descriptors))) continue;
    node.broker.Leave(node.ids[of], (descriptors & 0x80) != 0);  // as the server ends it
    node.ids[of] = node.Join(node.attackers[of], node.AttackerOf(of));
  }
  node.Tick(50);
  for (int user = 0; user < 2; ++user) {
    kvmwire::ClientMessage ping;
    ping.set_request_id(77);
    ping.mutable_ping();
    if (!node.Send(node.honest_ids[static_cast<std::size_t>(user)], ping, {})) Broken("an honest user's connection goes on");
    const kvmwire::ServerMessage& answer = node.honest[static_cast<std::size_t>(user)].last();
    if (!answer.has_empty() || answer.request_id() != 77) Broken("an honest user is answered");
    node.Publish(user);
  }
}

std::vector<std::string> BrokerSeeds() {
  std::vector<std::string> out;
  const auto add = [](std::string& input, std::uint8_t connection, std::uint8_t descriptors, const kvmwire::ClientMessage& message) {
    const std::string text = message.SerializeAsString();
    input.push_back(static_cast<char>(connection));
    input.push_back(static_cast<char>(descriptors));
    input.push_back(static_cast<char>(text.size() & 0xFF));
    input.push_back(static_cast<char>(text.size() >> 8));
    input += text;
  };
  test::WireRegion own("own", test::LlamaSpec(), kBlocks);
  std::vector<PublishRecord> records;
  for (std::uint32_t block = 0; block < kBlocks; ++block) records.push_back(own.Write(block, {block, 99}));
  // The attacker's region gets the third row and the third epoch.
  own.row = 2;
  own.region_epoch = 3;
  std::string life;
  add(life, 0, 1, own.RegisterMessage());
  add(life, 0, 0, own.PublishMessage(records));
  kvmwire::ClientMessage store;
  store.mutable_prepare_store()->set_region(own.row);
  store.mutable_prepare_store()->set_region_epoch(own.region_epoch);
  store.mutable_prepare_store()->set_records(records.data(), records.size() * sizeof(PublishRecord));
  store.mutable_prepare_store()->set_asked(true);
  add(life, 0, 0, store);
  life += std::string("\xF0\0\0\0", 4);
  out.push_back(life);
  kvmwire::ClientMessage done;
  kvmwire::StoreOutcome& outcome = *done.mutable_complete_store()->add_outcomes();
  outcome.set_region(3);
  outcome.set_region_epoch(4);
  outcome.set_generation(1);
  outcome.set_stored(true);
  std::string cached = life;
  add(cached, 0, 0, done);
  kvmwire::ClientMessage use;
  use.mutable_host_cache_use()->add_runs()->set_region(3);
  use.mutable_host_cache_use()->mutable_runs(0)->set_region_epoch(4);
  use.mutable_host_cache_use()->mutable_runs(0)->set_blocks(1);
  add(cached, 1, 0, use);
  kvmwire::ClientMessage lease;
  lease.mutable_acquire_lease()->set_ttl_ms(1000);
  lease.mutable_acquire_lease()->add_sources()->set_region(3);
  add(cached, 1, 0, lease);
  out.push_back(cached);
  std::string evicted = cached;
  kvmwire::ClientMessage evict;
  evict.mutable_evict()->set_keys(&records[0].key, sizeof(BlockKey));
  add(evicted, 2, 0, evict);
  add(evicted, 1, 0, evict);
  evict.mutable_evict()->clear_keys();
  evict.mutable_evict()->set_fingerprint(own.descriptor.fingerprint());
  evict.mutable_evict()->set_domain("node");
  add(evicted, 2, 0, evict);
  out.push_back(evicted);
  std::string ends = life;
  kvmwire::ClientMessage retract;
  retract.mutable_retract()->set_region(own.row);
  retract.mutable_retract()->set_region_epoch(own.region_epoch);
  retract.mutable_retract()->add_blocks(1);
  add(ends, 0, 0, retract);
  add(ends, 0, 0, own.UnregisterMessage());
  kvmwire::ClientMessage ack;
  ack.mutable_withdraw_ack()->set_region(own.row);
  ack.mutable_withdraw_ack()->set_region_epoch(own.region_epoch);
  add(ends, 1, 0, ack);
  out.push_back(ends);
  std::string others;
  kvmwire::ClientMessage message;
  message.set_request_id(1);
  message.mutable_allocate_memory()->add_size_bytes(4096);
  *message.mutable_allocate_memory()->mutable_for_region() = own.descriptor;
  add(others, 0, 0, message);
  *message.mutable_adopt_region()->mutable_expected() = own.descriptor;
  add(others, 0, 0, message);
  message.mutable_reclaim()->set_force(true);
  add(others, 0, 0, message);
  message.mutable_status_query();
  add(others, 1, 0, message);
  message.mutable_renew_lease()->set_lease(1);
  add(others, 1, 0, message);
  message.mutable_release_lease()->set_lease(1);
  add(others, 1, 0, message);
  message.mutable_stats_report()->set_unmapped_reason("none");
  message.mutable_stats_report()->add_recent_misses()->set_key(std::string(16, 'k'));
  message.mutable_stats_report()->add_traffic()->set_from_device(std::string(16, 'd'));
  add(others, 2, 0, message);
  message.mutable_hello()->set_protocol_version(kProtocolVersion);
  add(others, 2, 0x80, message);
  out.push_back(others);
  return out;
}

}  // namespace kvm::fuzz
