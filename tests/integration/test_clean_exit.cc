// A worker that ends in an orderly way causes no warning in kvmd's log.
#include <cstdio>
#include <memory>
#include <string>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/kvmd/wire_client.h"
#include "tests/support/process/child_main.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ChildProcess;
using test::KvmdProcess;
using test::Worker;

// Globals of a process, in the order in which a program may happen to destroy them.
struct Globals {
  std::shared_ptr<Client> client;
  std::shared_ptr<Region> region;
};

const test::ChildMain leaver_main("clean_leaver", [](const std::vector<std::string>& arguments) {
  static Globals globals;
  const bool client_first = arguments.at(1) == "client-first";
  ClientOptions options;
  options.socket_path = arguments.at(0);
  options.name = "leaver";
  const Deadline deadline = After(std::chrono::seconds(10));
  const auto client = Client::Connect(options);
  if (!client) return 1;
  const auto model = (*client)->DeclareModel(test::SmallSpec(), deadline);
  if (!model) return 2;
  RegionOptions pool;
  pool.name = "leavers";
  pool.geometry = Geometry::Contiguous(16, 4096);
  const auto region = (*client)->AllocateRegion(*model, pool, deadline);
  if (!region) return 3;
  for (std::uint32_t block = 0; block < 16; ++block) {
    const PublishRequest request{{block + 1, 9}, {0, 9}, block, (*region)->BeginWrite(block)};
    if ((*region)->Publish({&request, 1}).readable != 1) return 4;
  }
  if (!(*region)->Flush(deadline)) return 5;
  std::puts("published");
  std::fflush(stdout);
  if (std::getchar() == EOF) return 6;
  // The one is destroyed here, before main ends; the other by exit().
  if (client_first) {
    globals.region = *region;
  } else {
    globals.client = *client;
  }
  return 0;
});

}  // namespace

TEST_CASE("Clean exit: kvmd logs no warning, though an importer has the region mapped", "[integration]") {
  KvmdProcess kvmd({"--log-level", "warn"});
  test::RegistryProbe probe(kvmd.socket());
  const auto reader = test::StartWorker({.socket = kvmd.socket(), .name = "reader", .blocks = 0});
  for (const char* order : {"client-first", "region-first"}) {
    INFO(order);
    ChildProcess leaver = ChildProcess::Self("clean_leaver", {kvmd.socket(), order});
    REQUIRE(leaver.ReadLine(std::chrono::seconds(20)) == "published");
    REQUIRE(test::Eventually([&] { return reader->client().Stats().mapped_regions == 1; }));
    REQUIRE(leaver.WriteLine("leave"));
    const std::optional<test::ProcessEnd> end = leaver.Wait(std::chrono::seconds(20));
    REQUIRE(end.has_value());
    CHECK(end->clean());
    CHECK(test::Eventually([&] { return probe.RegionRows() == 0 && probe.live_entries() == 0; }));
    CHECK(test::Eventually([&] { return reader->client().Stats().mapped_regions == 0; }));
    CHECK(probe.Status().domains(0).orphans() == 0);
    CHECK(kvmd.Log().empty());
  }
}

TEST_CASE("Clean exit: a client that ends does not wait for importers that do not answer, and kvmd logs no warning", "[integration]") {
  KvmdProcess kvmd({"--log-level", "warn"});
  test::RegistryProbe probe(kvmd.socket());
  Result<test::WireClient> importer = test::WireClient::Connect(kvmd.socket());
  KVM_REQUIRE_OK(importer);
  KVM_REQUIRE_OK(importer->Hello("silent"));
  KVM_REQUIRE_OK(importer->DeclareModel(test::SmallSpec()));
  ChildProcess leaver = ChildProcess::Self("clean_leaver", {kvmd.socket(), "client-first"});
  REQUIRE(leaver.ReadLine(std::chrono::seconds(20)) == "published");
  CHECK(importer->Announcement()->message.has_region_announce());
  REQUIRE(leaver.WriteLine("leave"));
  const std::optional<test::ProcessEnd> end = leaver.Wait(std::chrono::seconds(20));
  REQUIRE(end.has_value());
  CHECK(end->clean());
  const Result<test::Received> withdraw = importer->Announcement();
  KVM_REQUIRE_OK(withdraw);
  CHECK_FALSE(withdraw->message.region_withdraw().wants_ack());
  CHECK(test::Eventually([&] { return probe.RegionRows() == 0; }));
  CHECK(kvmd.Log().empty());
}
