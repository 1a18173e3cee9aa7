// Why a lookup missed: each reason is counted by the worker that missed.
#include <array>
#include <vector>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/process/eventually.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace kvm::test;

std::unique_ptr<Worker> Start(const KvmdProcess& kvmd, const std::string& name, const ModelSpec& spec = SmallSpec()) {
  return StartWorker({.socket = kvmd.socket(), .name = name, .spec = spec});
}

// The misses by reason: absent, other_model, stale, unreachable, too_short, kvmd_away.
using Counts = std::array<std::uint64_t, 6>;
Counts Misses(Worker& worker) {
  const ClientStats stats = worker.client().Stats();
  return {stats.misses_absent,      stats.misses_other_model, stats.misses_stale,
          stats.misses_unreachable, stats.misses_too_short,   stats.misses_kvmd_away};
}

}  // namespace

TEST_CASE("Misses: a whole hit is none, and the next block that is not published is one", "[integration]") {
  KvmdProcess kvmd;
  auto owner = Start(kvmd, "owner"), seeker = Start(kvmd, "seeker");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  REQUIRE(seeker->Find("a:4").size() == 4);
  CHECK(Misses(*seeker) == Counts{});
  REQUIRE(seeker->Find("a:4,b:2").size() == 4);
  CHECK(Misses(*seeker) == Counts{1, 0, 0, 0, 0, 0});
}

TEST_CASE("Misses: a block that was rewritten after its publish is stale", "[integration]") {
  KvmdProcess kvmd({"--sweep-interval-ms", "600000"});
  auto owner = Start(kvmd, "owner"), seeker = Start(kvmd, "seeker");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  owner->region().Retract(2);
  REQUIRE(seeker->Find("a:4").size() == 2);
  CHECK(Misses(*seeker) == Counts{0, 0, 1, 0, 0, 0});
}

TEST_CASE("Misses: nothing found while a model that nearly agrees is served is told apart", "[integration]") {
  KvmdProcess kvmd;
  ModelSpec other = SmallSpec();
  other.kv_dtype = "float32";
  auto seeker = Start(kvmd, "seeker");
  REQUIRE(seeker->Find("a:4").empty());
  CHECK(Misses(*seeker) == Counts{1, 0, 0, 0, 0, 0});
  auto owner = Start(kvmd, "owner", other);
  // The tables of models are looked at once a second at most.
  CHECK(Eventually([&] {
    REQUIRE(seeker->Find("a:4").empty());
    return Misses(*seeker)[1] > 0;
  }));
  CHECK(Misses(*seeker)[2] + Misses(*seeker)[3] + Misses(*seeker)[4] + Misses(*seeker)[5] == 0);
}

TEST_CASE("Misses: a region that is not mapped makes its blocks unreachable", "[integration]") {
  KvmdProcess kvmd;
  auto owner = Start(kvmd, "owner");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  Result<std::shared_ptr<Client>> stranger = Client::Connect({.socket_path = kvmd.socket(), .name = "stranger", .max_mapped_regions = 0});
  KVM_REQUIRE_OK(stranger);
  const std::vector<BlockKey> keys = owner->Keys("a:4");
  REQUIRE((*stranger)->Find(keys).empty());
  CHECK((*stranger)->Stats().misses_unreachable == 1);
}

TEST_CASE("Misses: a lookup without keys is too short", "[integration]") {
  KvmdProcess kvmd;
  auto seeker = Start(kvmd, "seeker");
  CHECK(seeker->client().Find({}).empty());
  CHECK(Misses(*seeker) == Counts{0, 0, 0, 0, 1, 0});
}

TEST_CASE("Misses: a shard that is not looked up since an earlier one has nothing is no miss of its own", "[integration]") {
  KvmdProcess kvmd;
  auto seeker = Start(kvmd, "seeker");
  const std::vector<BlockKey> first = seeker->Keys("a:4"), second = seeker->Keys("b:4");
  const std::vector<std::span<const BlockKey>> shards{first, second};
  const std::vector<Match> matches = seeker->client().FindShards(shards);
  REQUIRE(matches.size() == 2);
  CHECK(matches[0].empty());
  CHECK(matches[1].empty());
  CHECK(Misses(*seeker) == Counts{1, 0, 0, 0, 0, 0});
}

TEST_CASE("Misses: while kvmd is away, that is the reason", "[integration]") {
  KvmdProcess kvmd;
  auto seeker = Start(kvmd, "seeker");
  kvmd.Kill();
  REQUIRE(Eventually([&] { return seeker->client().state() != ConnectionState::kConnected; }));
  REQUIRE(seeker->Find("a:4").empty());
  CHECK(Misses(*seeker) == Counts{0, 0, 0, 0, 0, 1});
}

TEST_CASE("Misses: an import that is dropped before its end was seen is not under way any more", "[integration]") {
  KvmdProcess kvmd;
  auto owner = Start(kvmd, "owner"), seeker = Start(kvmd, "seeker");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  const Match match = seeker->Find("a:4");
  REQUIRE(match.size() == 4);
  const std::vector<std::uint32_t> blocks{0, 1, 2, 3};
  {
    Result<ImportTicket> ticket = seeker->client().Import(match, seeker->region(), blocks);
    KVM_REQUIRE_OK(ticket);
    CHECK(seeker->client().Stats().imports_ended == 0);
  }
  CHECK(seeker->client().Stats().imports == 1);
  CHECK(seeker->client().Stats().imports_ended == 1);
}

TEST_CASE("Counts: what a client did just before its end is in kvmd's sums", "[integration]") {
  KvmdProcess kvmd;
  RegistryProbe probe(kvmd.socket());
  auto owner = Start(kvmd, "owner");
  owner->Publish("a:4", 0);
  KVM_REQUIRE_OK(owner->Flush());
  for (int i = 1; i <= 5; ++i) {
    auto seeker = Start(kvmd, "seeker");
    const ImportCheck import = seeker->FindAndImport("a:4", 0);
    REQUIRE(import.valid == 4);
    seeker.reset();
    CHECK(Eventually([&] { return probe.Status().domains(0).client_totals().blocks_imported() == 4u * i; }));
  }
}
