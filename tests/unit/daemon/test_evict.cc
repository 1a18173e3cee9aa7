// Evict at a broker that is driven by hand: which blocks of the host cache go, for whom, and how
// much of it kvmd does at once.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "daemon/system/log.h"
#include "daemon/system/work_meter.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/broker/offloading_worker.h"

namespace kvm::test {
namespace {

using daemon::kSliceUnits;
using daemon::WorkMeter;

constexpr std::uint32_t kAdmin = 7;

Config Administered(Config config) {
  config.admins = {kAdmin};
  return config;
}

kvmwire::ClientMessage EvictMessage(const std::vector<BlockKey>& keys = {}) {
  kvmwire::ClientMessage message;
  message.mutable_evict()->set_keys(keys.data(), keys.size() * sizeof(BlockKey));
  return message;
}

// Of which a slice drops a few, since each is overwritten with zeros.
constexpr std::uint64_t kLargeBlock = 4 << 20;

Config LargeBlocks(std::uint32_t slabs) {
  Config config = CacheOf(slabs);
  config.host_cache_slab_bytes = kSlots * kLargeBlock;
  config.host_cache_bytes = slabs * config.host_cache_slab_bytes;
  config.zero_on_free = true;
  return config;
}

// What kvmd logs while it lives.
class CapturedLog {
 public:
  CapturedLog() : file_(::memfd_create("log", MFD_CLOEXEC)), stderr_(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0)) {
    static_cast<void>(daemon::DrainLog(std::chrono::seconds(60)));
    ::dup2(file_.get(), STDERR_FILENO);
    daemon::SetLogLevel(daemon::LogLevel::kInfo);
  }
  ~CapturedLog() {
    static_cast<void>(daemon::DrainLog(std::chrono::seconds(60)));
    ::dup2(stderr_.get(), STDERR_FILENO);
    daemon::SetLogLevel(daemon::LogLevel::kError);
  }
  CapturedLog(const CapturedLog&) = delete;
  CapturedLog& operator=(const CapturedLog&) = delete;

  std::string Text() const {
    // Where stderr was no file when the log began, a thread writes it.
    REQUIRE(daemon::DrainLog(std::chrono::seconds(60)));
    std::string text(1 << 16, '\0');
    const ssize_t size = ::pread(file_.get(), text.data(), text.size(), 0);
    text.resize(static_cast<std::size_t>(std::max<ssize_t>(size, 0)));
    return text;
  }

 private:
  const UniqueFd file_, stderr_;
};

struct Operator {
  explicit Operator(Node& its_node, std::uint32_t uid = kAdmin)
      : node(its_node), id(its_node.Join(connection, kDeadPid, uid, kvmwire::OBSERVER)) {}

  ~Operator() { node.broker.Leave(id, false); }
  Operator(const Operator&) = delete;
  Operator& operator=(const Operator&) = delete;

  kvmwire::EvictReply Evict(const kvmwire::ClientMessage& message = EvictMessage()) {
    node.Handle(id, message);
    return connection.Take(Body::kEvictReply).message.evict_reply();
  }
  std::string Refused(const kvmwire::ClientMessage& message = EvictMessage()) {
    node.Handle(id, message);
    return connection.TakeError();
  }

  Node& node;
  FakeConnection connection;
  ClientId id;
};

std::uint64_t Blocks(Node& node, std::uint32_t uid = 1000) { return node.Domain(uid).host_cache().blocks(); }

std::vector<BlockKey> KeysOf(const std::vector<PublishRecord>& records, std::size_t from, std::size_t to) {
  std::vector<BlockKey> keys;
  for (std::size_t i = from; i < to; ++i) keys.push_back(records[i].key);
  return keys;
}

}  // namespace

TEST_CASE("Evict: without a filter every stored block goes, and its place is free", "[unit]") {
  Node node(Administered(CacheOf(1)));
  OffloadingWorker writer(node, "writer");
  REQUIRE(writer.PrepareStore(writer.Write(0, kSlots)) == kSlots);
  const kvmwire::EvictReply reply = Operator(node).Evict();
  CHECK(reply.blocks() == kSlots);
  CHECK(reply.bytes() == kSlots * kBlockBytes);
  CHECK(Blocks(node) == 0);
  CHECK(node.Domain().host_cache().evicted() == kSlots);
  // The next ones need no other to leave.
  REQUIRE(writer.PrepareStore(writer.Write(20, 20 + kSlots, 2)) == kSlots);
  CHECK(node.Domain().host_cache().evicted() == kSlots);
}

TEST_CASE("Evict: of the keys that are named, and of no others", "[unit]") {
  Node node(Administered(CacheOf(2)));
  OffloadingWorker writer(node, "writer");
  const std::vector<PublishRecord> records = writer.Write(0, 6);
  REQUIRE(writer.PrepareStore(records) == 6);
  Operator admin(node);
  std::vector<BlockKey> keys = KeysOf(records, 4, 6);
  keys.push_back({12345, 6});  // of no block
  CHECK(admin.Evict(EvictMessage(keys)).blocks() == 2);
  CHECK(Blocks(node) == 4);
  CHECK(admin.Evict(EvictMessage(keys)).blocks() == 0);
  const kvmwire::PrepareStoreReply again = writer.Offer(records);
  CHECK(again.present_size() == 4);
  CHECK(again.grants_size() == 2);
}

TEST_CASE("Evict: of the model that is named, and of no other", "[unit]") {
  Node node(Administered(CacheOf(2)));
  OffloadingWorker writer(node, "writer");
  REQUIRE(writer.PrepareStore(writer.Write(0, 4)) == 4);
  Operator admin(node);
  kvmwire::ClientMessage message = EvictMessage();
  message.mutable_evict()->set_fingerprint(std::string(32, 'x'));
  CHECK(admin.Evict(message).blocks() == 0);
  CHECK(Blocks(node) == 4);
  message.mutable_evict()->set_fingerprint(writer.region.descriptor.fingerprint());
  CHECK(admin.Evict(message).blocks() == 4);
}

TEST_CASE("Evict: admins may, of all domains or of theirs, and a domain's own users may not", "[unit]") {
  Config config = Administered(CacheOf(4));
  daemon::DomainRule team;
  team.name = "team";
  team.uids = {2001, 2002};
  team.admins = std::vector<std::uint32_t>{2002};
  config.domains = {team};
  Node node(config);
  OffloadingWorker of_team(node, "of-team", 2001), of_other(node, "of-other", 1000);
  REQUIRE(of_team.PrepareStore(of_team.Write(0, 3)) == 3);
  REQUIRE(of_other.PrepareStore(of_other.Write(0, 2)) == 2);
  CheckSays(Operator(node, 2001).Refused(), "admins");
  CheckSays(Operator(node, 1000).Refused(), "admins");
  CHECK(Blocks(node, 2001) == 3);
  Operator of_domain(node, 2002);
  kvmwire::ClientMessage elsewhere = EvictMessage();
  elsewhere.mutable_evict()->set_domain("uid-1000");
  CheckSays(of_domain.Refused(elsewhere), "uid-1000");
  CHECK(of_domain.Evict().blocks() == 3);
  CHECK(Blocks(node, 1000) == 2);
  REQUIRE(of_team.PrepareStore(of_team.Write(10, 13, 2)) == 3);
  Operator of_all(node);
  CHECK(of_all.Evict(elsewhere).blocks() == 2);
  CHECK(of_all.Evict().blocks() == 3);
}

TEST_CASE("Evict: blocks that a lease covers stay, and are counted", "[unit]") {
  Config config = Administered(CacheOf(2));
  config.max_leased_percent = config.max_leased_percent_per_domain = config.max_leased_percent_per_client = 100;
  Node node(config);
  OffloadingWorker writer(node, "writer");
  const std::vector<PublishRecord> records = writer.Write(0, 4);
  REQUIRE(writer.PrepareStore(records) == 4);
  kvmwire::ClientMessage acquire;
  acquire.mutable_acquire_lease()->set_registry_epoch(node.Domain().epoch());
  acquire.mutable_acquire_lease()->set_ttl_ms(10'000);
  for (int i = 0; i < 2; ++i) {
    // kvmd looks for the replica that it has itself.
    kvmwire::LeaseSource& source = *acquire.mutable_acquire_lease()->add_sources();
    source.set_region(writer.region.row);
    source.set_region_epoch(writer.region.region_epoch);
    source.set_block(records[i].block);
    source.set_generation(records[i].generation);
  }
  node.Handle(writer.id, writer.region.PublishMessage(records));
  node.Handle(writer.id, acquire);
  REQUIRE(writer.connection.Take(Body::kAcquireLeaseReply).message.acquire_lease_reply().blocks() == 2);
  Operator admin(node);
  kvmwire::EvictReply reply = admin.Evict();
  CHECK(reply.blocks() == 2);
  CHECK(reply.leased() == 2);
  CHECK(Blocks(node) == 2);
  reply = admin.Evict(EvictMessage(KeysOf(records, 0, 4)));
  CHECK(reply.blocks() == 0);
  CHECK(reply.leased() == 2);
}

TEST_CASE("Evict: a block that is being stored stays, and is stored", "[unit]") {
  Node node(Administered(CacheOf(2)));
  OffloadingWorker writer(node, "writer");
  const kvmwire::PrepareStoreReply granted = writer.Offer(writer.Write(0, 4));
  REQUIRE(granted.grants_size() == 4);
  const kvmwire::EvictReply reply = Operator(node).Evict();
  CHECK(reply.blocks() == 0);
  CHECK(reply.being_stored() == 4);
  writer.Done(granted);
  CHECK(Blocks(node) == 4);
}

TEST_CASE("Evict: kvmd does a slice of it at a time, and goes on where it was", "[unit]") {
  for (const bool named : {false, true}) {
    INFO("keys are named: " << named);
    Node node(Administered(LargeBlocks(1)));
    OffloadingWorker writer(node, "writer", 1000, kSlots, kLargeBlock);
    const std::vector<PublishRecord> records = writer.Write(0, kSlots);
    REQUIRE(writer.PrepareStore(records) == kSlots);
    Operator admin(node);
    std::uint64_t worst = 0;
    const auto step = [&](auto&& work) {
      const auto before = WorkMeter::spent();
      work();
      worst = std::max<std::uint64_t>(worst, WorkMeter::spent() - before);
    };
    step([&] { KVM_REQUIRE_OK(node.broker.Handle(admin.id, EvictMessage(KeysOf(records, 0, named ? kSlots : 0)), {})); });
    CHECK(node.broker.Busy(admin.id));
    CHECK(Blocks(node) > 0);
    CHECK(Blocks(node) < kSlots);
    while (node.broker.Busy(admin.id)) step([&] { node.broker.GoOn(admin.id); });
    CHECK(worst < kSliceUnits + kSliceUnits / 2);
    CHECK(Blocks(node) == 0);
    CHECK(admin.connection.Take(Body::kEvictReply).message.evict_reply().blocks() == kSlots);
  }
}

TEST_CASE("Evict: a slab that goes while its blocks do spares no block of another slab", "[unit]") {
  Config config = Administered(LargeBlocks(2));
  config.domain_mode = daemon::DomainMode::kNode;
  config.max_host_cache_per_client = config.host_cache_slab_bytes;
  Node node(config);
  OffloadingWorker first(node, "first", 1000, kSlots, kLargeBlock), second(node, "second", 1001, kSlots, kLargeBlock);
  REQUIRE(first.PrepareStore(first.Write(0, kSlots)) == kSlots);
  REQUIRE(second.PrepareStore(second.Write(0, kSlots, 2)) == kSlots);
  Operator admin(node);
  KVM_REQUIRE_OK(node.broker.Handle(admin.id, EvictMessage(), {}));
  REQUIRE(node.broker.Busy(admin.id));
  REQUIRE(node.Domain(1000).host_cache().slabs() == 2);
  // kvmd drops the second user's slab: the blocks of its model have another size now.
  node.broker.Leave(second.id, true);
  const OffloadingWorker again(node, "again", 1001, kSlots, 2 * kLargeBlock);
  REQUIRE(node.Domain(1000).host_cache().slabs() == 1);
  while (node.broker.Busy(admin.id)) node.broker.GoOn(admin.id);
  CHECK(Blocks(node) == 0);
}

TEST_CASE("Evict: the log says what went, also if the admin has left before the end", "[unit]") {
  Node node(Administered(LargeBlocks(1)));
  OffloadingWorker writer(node, "writer", 1000, kSlots, kLargeBlock);
  REQUIRE(writer.PrepareStore(writer.Write(0, kSlots)) == kSlots);
  CapturedLog log;
  {
    Operator admin(node);
    KVM_REQUIRE_OK(node.broker.Handle(admin.id, EvictMessage(), {}));
    REQUIRE(node.broker.Busy(admin.id));
  }
  const std::string text = log.Text();
  INFO(text);
  CHECK(text.find("event=host_cache_evict_asked") != std::string::npos);
  CHECK(text.find("event=host_cache_evicted") != std::string::npos);
  CHECK(text.find("complete=no blocks=" + std::to_string(kSlots - Blocks(node))) != std::string::npos);
}

TEST_CASE("Evict: keys that are cut off, or too many, break the protocol", "[unit]") {
  Node node(Administered(CacheOf(2)));
  Operator admin(node);
  kvmwire::ClientMessage message = EvictMessage();
  message.mutable_evict()->set_keys(std::string(17, 'k'));
  CHECK_FALSE(node.broker.Handle(admin.id, message, {}));
  CHECK_FALSE(node.broker.Handle(admin.id, EvictMessage(std::vector<BlockKey>(kMaxEvictKeys + 1)), {}));
}

TEST_CASE("Evict: a kvmd without a host cache says so", "[unit]") {
  Node node(Administered(Config()));
  CheckSays(Operator(node).Refused(), "--host-cache");
}

}  // namespace kvm::test
