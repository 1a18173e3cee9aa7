// What a kvmd takes over from an earlier one: a manifest and a registry of arbitrary bytes, beside
// files that are sound. A broker that starts from them serves a client afterwards.
//
// Input: u16 bytes of the manifest, these, then the registry segment.
#include <fcntl.h>
#include <google/protobuf/stubs/logging.h>

#include <cstring>
#include <memory>

#include "daemon/broker/broker.h"
#include "daemon/broker/state/state_store.h"
#include "proto/wire/protocol_limits.h"
#include "tests/fuzz/targets.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/data/segment_builder.h"
#include "tests/support/kvmd/wire_client.h"

namespace kvm::fuzz {
namespace {

constexpr std::uint32_t kBlocks = 8;
constexpr const char* kTable = "kept.file.0000000000000001";
constexpr const char* kPayload = "kept.file.0000000000000002";

class NoConnection final : public daemon::Connection {
 public:
  void Send(const kvmwire::ServerMessage& message, const std::vector<int>&) override { greeted = greeted || message.has_hello_reply(); }
  bool TrySend(const kvmwire::ServerMessage& message, const std::vector<int>& fds) override {
    Send(message, fds);
    return true;
  }
  std::size_t queued_bytes() const override { return 0; }
  bool HungUp() const override { return false; }
  void Disconnect() override {}
  bool greeted = false;
};

UniqueFd Sealed(Bytes bytes) {
  Result<OwnedMemory> memory = OwnedMemory::Create("fuzz", bytes.size());
  if (!memory) return {};
  std::memcpy(memory->data(), bytes.data(), bytes.size());
  return UniqueFd(::fcntl(memory->fd(), F_DUPFD_CLOEXEC, 0));
}

}  // namespace

void RestoreTarget(Bytes input) {
  const google::protobuf::LogSilencer quiet;
  Consumer consumer(input);
  const std::size_t wanted = consumer.Take<std::uint16_t>();
  const std::size_t manifest_bytes = std::min(wanted, consumer.left().size());
  const Bytes manifest = consumer.left().first(manifest_bytes), registry = consumer.left().subspan(manifest_bytes);
  const test::WireRegion region("pool", test::LlamaSpec(), kBlocks);
  std::vector<PassedFd> passed;
  const auto pass = [&](const char* name, UniqueFd fd) {
    if (fd) passed.push_back({name, std::move(fd)});
  };
  pass(kTable, UniqueFd(::fcntl(region.fds()[0], F_DUPFD_CLOEXEC, 0)));
  pass(kPayload, UniqueFd(::fcntl(region.fds()[1], F_DUPFD_CLOEXEC, 0)));
  if (!manifest.empty()) pass("kept.region.0000000000000001.00000001", Sealed(manifest));
  if (!registry.empty()) pass("kept.registry.0000000000000001", Sealed(registry));

  daemon::Config config;
  config.domain_mode = daemon::DomainMode::kNode;
  config.max_entries = 64;
  config.max_regions = 8;
  config.max_models = 4;
  config.max_domains = 2;
  config.host_cache_bytes = 64 << 10;
  config.host_cache_slab_bytes = 16 << 10;
  config.log_level = daemon::LogLevel::kError;
  daemon::SetLogLevel(config.log_level);
  daemon::ServiceManager manager;
  daemon::StateStore store(manager);
  daemon::Broker broker(
      config, [] {}, &store);
  broker.Restore(store.Sort(std::move(passed)));
  for (int i = 0; i < 1000 && broker.Work(); ++i) continue;
  broker.Tick(std::chrono::steady_clock::now() + std::chrono::seconds(1));
  broker.Sweep();
  NoConnection connection;
  const daemon::ClientId id = broker.Join(connection, {4'000'000, 2001, 2001}, {});
  kvmwire::ClientMessage hello;
  hello.mutable_hello()->set_protocol_version(kProtocolVersion);
  static_cast<void>(broker.Handle(id, hello, {}));
  if (!connection.greeted) Broken("a kvmd that has restored something serves clients");
  broker.Tick(std::chrono::steady_clock::now() + std::chrono::seconds(1000));
  for (int i = 0; i < 1000 && broker.Work(); ++i) continue;
}

std::vector<std::string> RestoreSeeds() {
  const test::WireRegion region("pool", test::LlamaSpec(), kBlocks);
  test::SegmentBuilder segment(2, 2, 16);
  segment.SetModel(0, test::LlamaSpec());
  segment.SetRegion(1, 3, "pool");
  IndexEntry entry;
  entry.key = {5, 6};
  entry.region = 1;
  entry.region_epoch = 3;
  entry.block = 2;
  segment.Add(entry);
  const std::string registry(reinterpret_cast<const char*>(segment.data()), segment.size());
  kvmwire::StoredRegion manifest;
  manifest.set_domain("node");
  manifest.set_registry_epoch(segment.header().epoch);
  manifest.set_row(1);
  manifest.set_region_epoch(3);
  *manifest.mutable_descriptor_() = region.descriptor;
  manifest.mutable_descriptor_()->set_outlives_owner(true);
  manifest.set_model_spec(test::LlamaSpec().Canonical());
  manifest.set_owner_pid(4'000'000);
  manifest.set_owner_uid(2001);
  manifest.add_files(kTable);
  manifest.add_files(kPayload);
  std::vector<std::string> out;
  const auto add = [&](const std::string& rest) {
    const std::string text = manifest.SerializeAsString();
    std::string input;
    input.push_back(static_cast<char>(text.size() & 0xFF));
    input.push_back(static_cast<char>(text.size() >> 8));
    out.push_back(input + text + rest);
  };
  add(registry);
  add("");
  manifest.mutable_slab()->set_writer_uid(2001);
  manifest.mutable_slab()->set_size_bytes(16 << 10);
  manifest.mutable_slab()->set_writable(true);
  add(registry);
  return out;
}

}  // namespace kvm::fuzz
