// Leases over processes: what is held outlives what would have ended it, and what is not held does
// not.
#include <chrono>
#include <string>

#include "tests/catch.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using std::chrono::milliseconds;
using std::chrono::seconds;
using test::Eventually;
using test::HostCacheOf;
using test::KvmdProcess;
using test::RegistryProbe;
using test::RemoteWorker;
using test::StoredEventually;
using test::Worker;
using test::WorkerOptions;

constexpr std::uint64_t kBlock = 4096;  // WorkerOptions::block_bytes
constexpr std::uint64_t kSlots = 64;    // of the host cache
constexpr milliseconds kLong{120'000};

Deadline Soon() { return After(seconds(10)); }

std::unique_ptr<Worker> Start(const KvmdProcess& kvmd, const std::string& name, std::uint32_t blocks = 64) {
  WorkerOptions options;
  options.socket = kvmd.socket();
  options.name = name;
  options.blocks = blocks;
  return test::StartWorker(std::move(options));
}

std::vector<std::string> SmallCache() {
  return {"--orphan-ttl-s", "0", "--host-cache", std::to_string(kSlots * kBlock), "--host-cache-policy", "lru"};
}

// Publishes as many other blocks as the cache has slots, twice, and waits until they have been
// offloaded.
void Press(Worker& publisher, RegistryProbe& probe, const std::string& stream) {
  for (std::uint32_t prompt = 0; prompt < 8; ++prompt) {
    const std::uint64_t before = HostCacheOf(probe).stored();
    publisher.Publish(stream + std::to_string(prompt) + ":16", 32 + (prompt % 4) * 16);
    KVM_REQUIRE_OK(publisher.Flush());
    REQUIRE(Eventually([&] { return HostCacheOf(probe).stored() == before + 16; }));
  }
}

kvmwire::DomainStatus DomainOf(RegistryProbe& probe) { return probe.Status().domains(0); }

}  // namespace

TEST_CASE("Leases: another process's lease keeps blocks in a cache under pressure, and without it they are evicted", "[integration]") {
  const bool held = GENERATE(true, false);
  INFO((held ? "held" : "not held"));
  KvmdProcess kvmd(SmallCache());
  RegistryProbe probe(kvmd.socket());
  const auto publisher = Start(kvmd, "publisher", 128);
  RemoteWorker holder({.socket = kvmd.socket(), .name = "holder"});
  publisher->Publish("a:16", 0);
  KVM_REQUIRE_OK(publisher->Flush());
  REQUIRE(StoredEventually(probe, 16) == 16);
  if (held) {
    CHECK(holder.AcquireLease("a:16", kLong) == 16);
    CHECK(DomainOf(probe).leased_bytes() == 16 * kBlock);
  }
  Press(*publisher, probe, "p");
  // Only the cache's copies are left.
  for (std::uint32_t block = 0; block < 16; ++block) publisher->region().Retract(block);
  const auto reader = Start(kvmd, "reader");
  const test::ImportCheck import = reader->FindAndImport("a:16", 0);
  CHECK(import.valid == (held ? 16 : 0));
  CHECK(import.wrong == 0);
  if (!held) return;
  holder.Release();
  REQUIRE(Eventually([&] { return DomainOf(probe).leases() == 0; }));
  Press(*publisher, probe, "q");
  CHECK(reader->Find("a:16").empty());
}

TEST_CASE("Leases: leased blocks of a dead worker stay beyond their time, and blocks without a lease do not", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "1"});
  RegistryProbe probe(kvmd.socket());
  RemoteWorker held({.socket = kvmd.socket(), .name = "held"}), other({.socket = kvmd.socket(), .name = "other"});
  const auto holder = Start(kvmd, "holder");
  held.Publish("a:20", 0);
  other.Publish("b:20", 0);
  REQUIRE(Eventually([&] { return holder->Find("a:20").size() == 20; }));
  // Not while its owner lives and may overwrite them.
  KVM_CHECK_ERROR(holder->client().AcquireLease(holder->Find("a:20"), kLong, Soon()), Errc::kUnsupported, "held");
  held.Kill();
  Result<Lease> lease = MakeError(Errc::kUnavailable, "not tried");
  REQUIRE(Eventually([&] {
    lease = holder->client().AcquireLease(holder->Find("a:20"), kLong, Soon());
    return lease.has_value();
  }));
  CHECK(lease->valid());
  CHECK(lease->blocks() == 20);
  CHECK(lease->left() <= kLong);
  CHECK(lease->reason().message.empty());
  other.Kill();
  // The one that died later has gone by its time, the held one has not.
  REQUIRE(Eventually([&] { return holder->Find("b:20").empty(); }, seconds(30)));
  const test::ImportCheck import = holder->FindAndImport("a:20", 0);
  CHECK(import.valid == 20);
  CHECK(import.wrong == 0);
  lease->Release();
  CHECK_FALSE(lease->valid());
  CHECK(Eventually([&] { return DomainOf(probe).orphans() == 0; }));
  CHECK(Eventually([&] { return probe.RegionRows(held.pid()) == 0; }));
}

TEST_CASE("Leases: an adoption takes the blocks from the lease, and the lease shows it", "[integration]") {
  KvmdProcess kvmd;
  RegistryProbe probe(kvmd.socket());
  RemoteWorker victim({.socket = kvmd.socket(), .name = "pool"});
  const auto holder = Start(kvmd, "holder");
  victim.Publish("a:20", 0);
  victim.Kill();
  Result<Lease> lease = MakeError(Errc::kUnavailable, "not tried");
  REQUIRE(Eventually([&] {
    lease = holder->client().AcquireLease(holder->Find("a:20"), kLong, Soon());
    return lease.has_value();
  }));
  const auto adopter = test::StartWorker({.socket = kvmd.socket(), .name = "pool", .adopt = true});
  CHECK(adopter->adopted().size() == 20);
  REQUIRE(Eventually([&] { return !lease->valid(); }));
  CHECK(lease->reason().code == Errc::kNotFound);
  CHECK(lease->reason().message.find("adopted") != std::string::npos);
  KVM_CHECK_ERROR(lease->Renew(kLong, Soon()), Errc::kNotFound, "adopted");
  CHECK(DomainOf(probe).leases() == 0);
  // Blocks that the adopting worker has not overwritten can still be imported.
  CHECK(holder->FindAndImport("a:20", 0).valid == 20);
}

TEST_CASE("Leases: one of more blocks than a message names", "[integration]") {
  KvmdProcess kvmd;
  RegistryProbe probe(kvmd.socket());
  constexpr std::uint32_t kBlocks = 20'000;
  WorkerOptions options;
  options.socket = kvmd.socket();
  options.name = "pool";
  options.blocks = kBlocks;
  options.block_bytes = 64;
  RemoteWorker victim(options);
  options.name = "holder";
  const auto holder = test::StartWorker(options);
  victim.Publish("a:20000", 0);
  victim.Kill();
  std::size_t blocks = 0;
  REQUIRE(Eventually([&] {
    const Result<Lease> lease = holder->client().AcquireLease(holder->Find("a:20000"), kLong, Soon());
    if (!lease) return false;
    blocks = lease->blocks();
    return DomainOf(probe).leased_blocks() == kBlocks;
  }));
  CHECK(blocks == kBlocks);
  // The lease went with its object.
  CHECK(Eventually([&] { return DomainOf(probe).leased_blocks() == 0; }));
  CHECK(DomainOf(probe).leases() == 0);
}

TEST_CASE("Leases: errors name their reason, and a moved lease covers the same blocks", "[integration]") {
  KvmdProcess kvmd({"--orphan-ttl-s", "0", "--host-cache", "4M", "--max-lease-ttl-s", "60", "--max-leases-per-client", "2"});
  RegistryProbe probe(kvmd.socket());
  const auto worker = Start(kvmd, "worker");
  worker->Publish("a:8", 0);
  KVM_REQUIRE_OK(worker->Flush());
  REQUIRE(StoredEventually(probe, 8) == 8);
  const Match match = worker->Find("a:8");
  Client& client = worker->client();
  KVM_CHECK_ERROR(client.AcquireLease(worker->Find("b:8"), seconds(10), Soon()), Errc::kInvalidArgument, "empty");
  KVM_CHECK_ERROR(client.AcquireLease(match, seconds(0), Soon()), Errc::kInvalidArgument, "time to live");
  KVM_CHECK_ERROR(client.AcquireLease(match, seconds(61), Soon()), Errc::kInvalidArgument, "--max-lease-ttl-s");
  Result<Lease> first = client.AcquireLease(match.Slice(0, 5), seconds(10), Soon());
  KVM_REQUIRE_OK(first);
  CHECK(first->blocks() == 5);
  Result<Lease> second = client.AcquireLease(match, seconds(10), Soon());
  KVM_REQUIRE_OK(second);
  KVM_CHECK_ERROR(client.AcquireLease(match, seconds(10), Soon()), Errc::kResourceExhausted, "--max-leases-per-client");
  KVM_CHECK_ERROR(first->Renew(seconds(61), Soon()), Errc::kInvalidArgument, "--max-lease-ttl-s");
  KVM_REQUIRE_OK(first->Renew(seconds(60), Soon()));
  CHECK(first->left() > seconds(10));
  Lease moved = std::move(*first);
  CHECK(moved.blocks() == 5);
  CHECK(first->blocks() == 0);
  CHECK(first->reason().code == Errc::kCancelled);
  moved = std::move(*second);  // releases the five
  CHECK(moved.blocks() == 8);
  CHECK(Eventually([&] { return DomainOf(probe).leased_blocks() == 8; }));
  // It outlives its client, and holds nothing then.
  worker->DropClient();
  CHECK_FALSE(moved.valid());
  CHECK(moved.reason().code == Errc::kCancelled);
  CHECK(Eventually([&] { return DomainOf(probe).leased_blocks() == 0; }));
  Result<std::shared_ptr<Client>> offline = Client::Connect({.socket_path = "/nowhere", .start_offline = true});
  KVM_REQUIRE_OK(offline);
  KVM_CHECK_ERROR((*offline)->AcquireLease(match, seconds(10), Soon()), Errc::kUnavailable, "not connected");
}

TEST_CASE("Quotas: a domain at its limit of descriptors refuses regions by name, and serves those it has", "[integration]") {
  // A worker's region takes four, and memory that a process can still write counts for its user.
  KvmdProcess kvmd({"--max-fds-per-domain", "14", "--max-fds-per-user", "64"});
  RegistryProbe probe(kvmd.socket());
  RemoteWorker publisher({.socket = kvmd.socket(), .name = "publisher"});
  publisher.Publish("a:10", 0);
  const auto reader = Start(kvmd, "reader");
  RegionOptions more;
  more.name = "more";
  more.geometry = reader->region().geometry();
  const Result<std::shared_ptr<Region>> third = reader->client().AllocateRegion(reader->model(), more, Soon());
  KVM_REQUIRE_OK(third);
  more.name = "one-too-many";
  KVM_CHECK_ERROR(reader->client().AllocateRegion(reader->model(), more, Soon()), Errc::kResourceExhausted, "--max-fds-per-domain");
  CHECK(DomainOf(probe).fds() == 12);
  CHECK(DomainOf(probe).max_fds() == 14);
  CHECK(reader->FindAndImport("a:10", 0).valid == 10);
  publisher.Unregister();
  CHECK(Eventually([&] { return DomainOf(probe).fds() == 8; }));
  KVM_REQUIRE_OK(reader->client().AllocateRegion(reader->model(), more, Soon()));
}
