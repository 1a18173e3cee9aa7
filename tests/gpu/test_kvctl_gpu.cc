// kvctl on GPUs: replay's counts and bytes, the benchmark's rows, topo.
#include "kvm/topology.h"
#include "tests/support/kvmd/kvctl_sandbox.h"

namespace {

using namespace kvm;
using namespace kvm::test;

// Why there is no usable GPU; empty: there is one.
std::string WhyNoGpu() {
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  if (!devices) return devices.error().message;
  std::string why = "no GPU";
  for (const DeviceInfo& device : *devices) {
    if (device.unusable.empty()) return "";
    why = device.unusable;
  }
  return why;
}

}  // namespace

TEST_CASE("kvctl replay: on GPUs the same blocks are hit as in host memory, byte for byte", "[gpu]") {
  if (const std::string why = WhyNoGpu(); !why.empty()) KVM_SKIP(why);
  const Sandbox sandbox;
  const std::string replay =
      "replay --json --private --in-order --workload chat --requests 300 --workers 4 --pool-blocks 6000 --block-bytes 4096 --backend ";
  const Sandbox::Output host = sandbox.Run(replay + "host"), gpu = sandbox.Run(replay + "cuda");
  INFO(host.err << gpu.err);
  REQUIRE(host.code == 0);
  REQUIRE(gpu.code == 0);
  CHECK(Text(gpu.Json(), "backend") == "cuda");
  CHECK_FALSE(gpu.Json().at("devices").as_array().empty());
  CHECK(gpu.Json().at("unmapped").as_array().empty());
  for (const char* count : {"blocks_total", "blocks_hit", "blocks_local", "blocks_imported", "bytes_imported", "evictions"}) {
    INFO(count);
    CHECK(Number(gpu.Json(), count) == Number(host.Json(), count));
  }
  CHECK(Number(gpu.Json(), "blocks_imported") > 0);
  CHECK(Number(gpu.Json(), "mismatched_blocks") == 0);
  CHECK(Number(gpu.Json(), "failed_imports") == 0);
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl replay: concurrent workers with small pools on GPUs never take a wrong block", "[gpu]") {
  if (const std::string why = WhyNoGpu(); !why.empty()) KVM_SKIP(why);
  const Sandbox sandbox;
  const Sandbox::Output output = sandbox.Run(
      "replay --json --private --backend cuda --workload agents --requests 400 --workers 4 --pool-blocks 150 --block-bytes 65536");
  INFO(output.err);
  REQUIRE(output.code == 0);
  CHECK(Number(output.Json(), "requests") == 400);
  CHECK(Number(output.Json(), "mismatched_blocks") == 0);
  CHECK(Number(output.Json(), "evictions") > 0);
  CHECK(Number(output.Json(), "blocks_hit") > 0);
}

TEST_CASE("kvctl bench import: on GPUs every row is measured", "[gpu]") {
  if (const std::string why = WhyNoGpu(); !why.empty()) KVM_SKIP(why);
  const Sandbox sandbox;
  const Sandbox::Output output = sandbox.Run("bench import --json --backend cuda --bytes 67108864 --rounds 20");
  INFO(output.err);
  REQUIRE(output.code == 0);
  const boost::json::value report = output.Json();
  CHECK(Text(report, "backend") == "cuda");
  const bool two = report.at("devices").as_array().size() == 2;
  CHECK(report.at("rows").as_array().size() == (two ? 14u : 3u));
  for (const boost::json::value& row : report.at("rows").as_array()) {
    INFO(Text(row, "name"));
    CHECK(row.at("value").to_number<double>() > 0);
    CHECK(row.at("bytes_per_s").to_number<double>() > 0);
  }
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvm_bench import: every row that copies is next to a copy by CUDA", "[gpu]") {
  if (const std::string why = WhyNoGpu(); !why.empty()) KVM_SKIP(why);
  if (!std::filesystem::exists(ProgramBeside("kvm_bench"))) KVM_SKIP("kvm_bench is not built");
  const Sandbox sandbox;
  const Sandbox::Output output = sandbox.RunBeside("kvm_bench", "import --json --bytes 67108864 --rounds 20");
  INFO(output.err);
  REQUIRE(output.code == 0);
  const boost::json::value report = output.Json();
  const bool two = report.at("devices").as_array().size() == 2;
  std::size_t compared = 0;
  for (const boost::json::value& row : report.at("rows").as_array()) {
    INFO(Text(row, "name"));
    CHECK(row.at("value").to_number<double>() > 0);
    if (Text(row, "unit") == "us") continue;
    ++compared;
    CHECK(Text(row, "unit") == "ratio");
    CHECK(row.at("baseline_bytes_per_s").to_number<double>() > 0);
    CHECK(row.at("goal").is_null());  // goals are for 1 GiB
  }
  CHECK(compared >= (two ? 13u : 3u));  // CUDA's own two calls for chunks need a new toolkit
  CHECK(sandbox.NothingLeft());
}

TEST_CASE("kvctl topo: shows every GPU and every pair, with rates once measured", "[gpu]") {
  if (const std::string why = WhyNoGpu(); !why.empty()) KVM_SKIP(why);
  const Sandbox sandbox;
  const Result<Topology> topology = ReadTopology();
  KVM_REQUIRE_OK(topology);
  const Sandbox::Output output = sandbox.Run("topo --measure --json");
  INFO(output.err);
  REQUIRE(output.code == 0);
  const boost::json::value json = output.Json();
  REQUIRE(json.at("devices").as_array().size() == topology->devices.size());
  for (std::size_t i = 0; i < topology->devices.size(); ++i) {
    CHECK(Text(json.at("devices").at(i), "uuid") == FormatUuid(topology->devices[i].uuid));
  }
  REQUIRE(json.at("links").as_array().size() == topology->links.size());
  for (std::size_t i = 0; i < topology->links.size(); ++i) {
    const boost::json::value& link = json.at("links").at(i);
    CHECK(link.at("reachable").as_bool() == topology->links[i].reachable);
    CHECK(link.at("gb_per_s").is_null() != topology->links[i].reachable);
  }
}
