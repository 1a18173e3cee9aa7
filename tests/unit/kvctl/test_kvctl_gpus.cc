// What kvctl says about GPUs: topo, doctor's findings, the rows of a benchmark; from made-up
// machines.
#include <boost/json/serialize.hpp>

#include <cstring>
#include <sstream>

#include "client/kvctl/bench/bench_rows.h"
#include "client/kvctl/doctor/doctor_checks.h"
#include "client/kvctl/views/topo_text.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

DeviceInfo Gpu(int ordinal) {
  DeviceInfo device;
  device.uuid.fill(static_cast<std::uint8_t>(ordinal + 1));
  device.ordinal = ordinal;
  device.name = "H100";
  device.pci_address = "0000:0" + std::to_string(ordinal) + ":00.0";
  device.memory_bytes = std::uint64_t{80} << 30;
  device.sm_count = 132;
  device.compute_capability = 90;
  return device;
}

// GPU 1 reads GPU 0 over NVLink; GPU 0 can't reach GPU 1.
Topology LopsidedPair() {
  Topology topology;
  topology.devices = {Gpu(0), Gpu(1)};
  topology.links.resize(4);
  topology.links[0] = {true, MemoryPath::kSameDevice, 0, 1496.04, ""};
  topology.links[1] = {false, MemoryPath::kSameDevice, 0, 0, "no peer access"};
  topology.links[2] = {true, MemoryPath::kNvlink, 18, 397.26, ""};
  topology.links[3] = {true, MemoryPath::kSameDevice, 0, 0, ""};
  return topology;
}

std::string Lines(const std::vector<Check>& checks) {
  std::string lines;
  for (const Check& check : checks) lines += std::string(VerdictName(check.verdict)) + " " + check.name + ": " + check.detail + "\n";
  return lines;
}

RegionEntry RegionOn(const DeviceUuid& device) {
  RegionEntry region;
  std::memcpy(region.info.device_uuid, device.data(), device.size());
  region.info.block_count = 10;
  region.info.block_bytes = 64;
  region.info.live_entries = 3;
  region.info.handle_kind = static_cast<decltype(region.info.handle_kind)>(device == kHostMemory ? layout::HandleKind::kHostMemfd
                                                                                                 : layout::HandleKind::kCudaVmmFd);
  return region;
}

}  // namespace

TEST_CASE("Topo: a row imports from a column, with path, links, rate and notes", "[unit]") {
  std::ostringstream out;
  PrintTopology(out, LopsidedPair());
  CHECK(out.str() ==
        "GPU  name  UUID                                      PCI           memory  SMs  compute\n"
        "0    H100  GPU-01010101-0101-0101-0101-010101010101  0000:00:00.0  80 GiB  132      9.0\n"
        "1    H100  GPU-02020202-0202-0202-0202-020202020202  0000:01:00.0  80 GiB  132      9.0\n"
        "\n"
        "importer  from GPU 0              from GPU 1\n"
        "GPU 0     same GPU, 1496.0 GB/s   -\n"
        "GPU 1     NVLink x18, 397.3 GB/s  same GPU\n"
        "\n"
        "GPU 0 from GPU 1  no peer access\n");
}

TEST_CASE("Topo: in JSON what is not known is null", "[unit]") {
  const boost::json::object json = TopologyJson(LopsidedPair());
  CHECK(json.at("devices").as_array().size() == 2);
  const boost::json::array& links = json.at("links").as_array();
  REQUIRE(links.size() == 4);
  CHECK(boost::json::serialize(links[1]) ==
        R"({"importer":0,"owner":1,"reachable":false,"path":null,"nvlinks":0,"gb_per_s":null,"note":"no peer access"})");
  CHECK(links[2].at("path").as_string() == "NVLink");
  CHECK(links[2].at("nvlinks").to_number<int>() == 18);
  CHECK(links[2].at("gb_per_s").to_number<double>() == Approx(397.26));
  CHECK(links[3].at("gb_per_s").is_null());
}

TEST_CASE("Topo: without GPUs it prints none", "[unit]") {
  std::ostringstream out;
  PrintTopology(out, Topology());
  CHECK(out.str() == "no GPU is visible\n");
}

TEST_CASE("Doctor: a machine without CUDA or GPU is healthy, a GPU that can't be used is a warning", "[unit]") {
  CHECK(Lines(CheckGpus("", MakeError(Errc::kUnsupported, "built without"))) ==
        "ok cuda: this kvctl is built without CUDA: workers of this build use host memory only\n");
  CHECK(Lines(CheckGpus("13.0", MakeError(Errc::kUnsupported, "no driver"))) == "ok cuda: built with CUDA 13.0; no driver\n");
  CHECK(Lines(CheckGpus("13.0", MakeError(Errc::kSystem, "it broke"))) == "warn cuda: built with CUDA 13.0; it broke\n");
}

TEST_CASE("Doctor: GPUs that can't be used and pairs that don't reach each other are named", "[unit]") {
  Topology topology = LopsidedPair();
  CHECK(Lines(CheckGpus("13.0", topology)) ==
        "ok cuda: built with CUDA 13.0; 2 GPUs visible\n"
        "warn peer access: GPU 0 from GPU 1: no peer access; their workers can't import from each other\n"
        "ok peer access: 1 pairs of GPUs, see kvctl topo\n");
  topology.links[2] = topology.links[1];
  topology.devices[1].unusable = "compute capability below 8.0";
  CHECK(Lines(CheckGpus("13.0", topology)) ==
        "ok cuda: built with CUDA 13.0; 2 GPUs visible\n"
        "warn cuda: GPU 1 is not used: compute capability below 8.0\n"
        "warn peer access: GPU 0 from GPU 1, GPU 1 from GPU 0: no peer access; their workers can't import from each other\n");
}

TEST_CASE("Doctor: GPU regions on GPUs that it can't see are for information", "[unit]") {
  const DeviceUuid elsewhere = Gpu(6).uuid;
  const std::vector<RegionEntry> regions{RegionOn(kHostMemory), RegionOn(Gpu(0).uuid), RegionOn(Gpu(0).uuid), RegionOn(elsewhere)};
  CHECK(Lines(CheckGpuRegions(regions, LopsidedPair())) ==
        "ok gpu regions: 3 on 2 GPUs; this kvctl does not see " + FormatUuid(elsewhere) + ", its workers' processes may\n");
  CHECK(CheckGpuRegions({RegionOn(kHostMemory)}, LopsidedPair()).empty());
  const std::string blind = Lines(CheckGpuRegions({RegionOn(elsewhere)}, MakeError(Errc::kUnsupported, "no driver")));
  CHECK(blind.find("1 on 1 GPU; this kvctl does not see " + FormatUuid(elsewhere)) != std::string::npos);
}

TEST_CASE("Doctor: a client's reason is shown without control characters", "[unit]") {
  kvmwire::StatusReply status;
  kvmwire::ClientStatus& healthy = *status.add_client_list();
  healthy.set_name("fine");
  healthy.set_pid(11);
  kvmwire::ClientStatus& client = *status.add_client_list();
  client.set_name("worker-1");
  client.set_pid(12);
  client.mutable_stats()->set_unmapped_regions(2);
  client.mutable_stats()->set_unmapped_reason("pool\x1b[2J: \xff no peer acc\xe2\x80");
  CHECK(Lines(CheckClientList(status)) ==
        "warn client: worker-1 (pid 12) can't import from 2 regions of its peers, so that their blocks are misses for it. One of them, "
        "pool?[2J: ? no peer acc??. Compare kvctl regions with the GPUs that the process sees, and kvctl topo with what they reach\n");
  client.mutable_stats()->clear_unmapped_reason();
  CHECK(Lines(CheckClientList(status)).find("It gave no reason") != std::string::npos);
}

TEST_CASE("Regions: they are summed up by memory", "[unit]") {
  const std::vector<RegionGroup> groups = GroupByMemory({RegionOn(kHostMemory), RegionOn(Gpu(0).uuid), RegionOn(kHostMemory)});
  REQUIRE(groups.size() == 2);
  CHECK(DeviceName(groups[0].device) == "host");
  CHECK(groups[0].regions == 2);
  CHECK(groups[0].size_bytes == 2 * 640);
  CHECK(groups[0].entries == 6);
  CHECK(groups[1].kind == layout::HandleKind::kCudaVmmFd);
  CHECK(DeviceName(groups[1].device) == FormatUuid(Gpu(0).uuid));
}

TEST_CASE("Bench rows: printed with the rate and the median of each", "[unit]") {
  BenchRow rate, time;
  rate.name = "scattered";
  rate.title = "a";
  rate.value = 380;
  rate.bytes_per_s = 380e9;
  rate.note = "find before it 9.0 µs";
  time.title = "b";
  time.unit = Unit::kMicroseconds;
  time.value = 50;
  time.bytes_per_s = 20e9;
  CHECK(RowsText({rate, time}) ==
        "what         rate       median  note\n"
        "a     380.00 GB/s  380.00 GB/s  find before it 9.0 µs\n"
        "b      20.00 GB/s      50.0 µs\n");
  const boost::json::array json = RowsJson({rate, time});
  CHECK(json[0].at("name").as_string() == "scattered");
  CHECK(json[0].at("unit").as_string() == "gb_per_s");
  CHECK(json[0].at("bytes_per_s").as_double() == 380e9);
  CHECK(json[1].at("unit").as_string() == "us");
  CHECK(json[1].at("value").as_double() == 50);
}
