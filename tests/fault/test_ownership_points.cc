// The end of ownership against importers that are in the middle of a copy, and owners that die in
// the middle of an end.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/registry_probe.h"
#include "tests/support/process/child_main.h"
#include "tests/support/process/temp_dir.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ChildProcess;
using test::Eventually;
using test::KvmdProcess;
using namespace std::chrono_literals;

constexpr std::uint64_t kBlock = 65'536;

// Finds "a:8", says so, imports it when it is told to, and prints "VALID WRONG".
const test::ChildMain importer_main("ownership_importer", [](const std::vector<std::string>& arguments) {
  ::setenv("KVM_FAULT_FILE", arguments.at(1).c_str(), 1);
  test::WorkerOptions options;
  options.socket = arguments.at(0);
  options.name = "importer";
  options.block_bytes = kBlock;
  const auto worker = test::Worker::Start(options);
  if (!worker) return 1;
  if (!Eventually([&] { return (*worker)->Find("a:8").size() == 8; })) return 2;
  std::puts("found");
  std::fflush(stdout);
  if (std::getchar() == EOF) return 3;
  const test::ImportCheck check = (*worker)->FindAndImport("a:8", 20);
  std::printf("%zu %zu\n", check.valid, check.wrong);
  std::fflush(stdout);
  return 0;
});

// Publishes, and unregisters when it is told to.
const test::ChildMain owner_main("ownership_owner", [](const std::vector<std::string>& arguments) {
  ::setenv("KVM_FAULT_FILE", arguments.at(1).c_str(), 1);
  const auto worker = test::Worker::Start({.socket = arguments.at(0), .name = "pool"});
  if (!worker) return 1;
  (*worker)->Publish("a:8", 0);
  if (!(*worker)->Flush()) return 2;
  std::puts("published");
  std::fflush(stdout);
  if (std::getchar() == EOF) return 3;
  (*worker)->DropRegion();
  return 0;
});

bool Stopped(pid_t process) {
  std::ifstream file("/proc/" + std::to_string(process) + "/stat");
  std::string text;
  std::getline(file, text);
  const std::size_t name_end = text.rfind(") ");
  return name_end != std::string::npos && text[name_end + 2] == 'T';
}

}  // namespace

TEST_CASE("Ownership: an importer that copies while its source is unregistered and reused gets no block of it", "[fault]") {
  const test::TempDir dir;
  KvmdProcess kvmd;
  const auto owner = test::StartWorker({.socket = kvmd.socket(), .name = "owner", .block_bytes = kBlock});
  owner->Publish("a:8", 0);
  KVM_REQUIRE_OK(owner->Flush());
  const std::string fault = dir / "fault";
  ChildProcess importer = ChildProcess::Self("ownership_importer", {kvmd.socket(), fault});
  REQUIRE(importer.ReadLine(20s) == "found");
  std::ofstream(fault) << "client_block_copied 1 stop";
  REQUIRE(importer.WriteLine("go"));
  // The first block is copied, and not validated yet
  REQUIRE(Eventually([&] { return Stopped(importer.pid()); }));
  KVM_CHECK_ERROR(owner->region().Unregister(After(200ms)), Errc::kDeadlineExceeded, "");
  std::memset(owner->region().SegmentData(), 0xEE, owner->region().segment_bytes()[0]);
  importer.Signal(SIGCONT);
  CHECK(importer.ReadLine(20s) == "0 0");
}

TEST_CASE("Ownership: an owner that dies right after it has ended its blocks leaves no block to find and no region to adopt", "[fault]") {
  const test::TempDir dir;
  KvmdProcess kvmd;
  test::RegistryProbe probe(kvmd.socket());
  const std::string fault = dir / "fault";
  ChildProcess owner = ChildProcess::Self("ownership_owner", {kvmd.socket(), fault});
  REQUIRE(owner.ReadLine(20s) == "published");
  CHECK(probe.live_entries() == 8);
  std::ofstream(fault) << "client_blocks_ended 1";
  REQUIRE(owner.WriteLine("go"));
  const std::optional<test::ProcessEnd> end = owner.Wait(20s);
  REQUIRE(end.has_value());
  CHECK(end->signal == SIGKILL);
  CHECK(Eventually([&] { return probe.RegionRows() == 0 && probe.live_entries() == 0; }));
  CHECK(probe.Status().domains(0).orphans() == 0);
  const auto adopter = test::StartWorker({.socket = kvmd.socket(), .name = "pool", .adopt = true});
  CHECK(adopter->adopted().empty());
}
