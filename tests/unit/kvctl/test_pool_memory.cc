// Where replay and bench put their pools, decided from what is visible.
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include "client/kvctl/workload/pool_memory.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

DeviceInfo Gpu(int ordinal, const std::string& unusable = "") {
  DeviceInfo device;
  device.uuid.fill(static_cast<std::uint8_t>(0xA0 + ordinal));
  device.ordinal = ordinal;
  device.name = "H" + std::to_string(ordinal);
  device.unusable = unusable;
  return device;
}

using Visible = Result<std::vector<DeviceInfo>>;

std::vector<int> Ordinals(const Result<PoolMemory>& memory) {
  KVM_REQUIRE_OK(memory);
  std::vector<int> ordinals;
  for (const DeviceInfo& device : memory->devices) ordinals.push_back(device.ordinal);
  return ordinals;
}

}  // namespace

TEST_CASE("Pool memory: auto takes all usable GPUs, and workers take them in turn", "[unit]") {
  const Visible visible = std::vector{Gpu(0), Gpu(1, "compute capability below 8.0"), Gpu(2)};
  const Result<PoolMemory> memory = ChoosePoolMemory(BackendChoice::kAuto, "", visible);
  CHECK(Ordinals(memory) == std::vector{0, 2});
  CHECK(memory->backend() == "cuda");
  CHECK(memory->DeviceOfWorker(0) == visible->at(0).uuid);
  CHECK(memory->DeviceOfWorker(1) == visible->at(2).uuid);
  CHECK(memory->DeviceOfWorker(4) == visible->at(0).uuid);
  CHECK(memory->Describe() == "cuda: GPU 0 (H0), GPU 2 (H2)");
}

TEST_CASE("Pool memory: auto falls back to the host and says why", "[unit]") {
  const Visible none = MakeError(Errc::kUnsupported, "no driver");
  const Result<PoolMemory> host = ChoosePoolMemory(BackendChoice::kAuto, "", none);
  CHECK(Ordinals(host).empty());
  CHECK(host->backend() == "host");
  CHECK(host->DeviceOfWorker(3) == kHostMemory);
  CHECK(host->Describe() == "host memory: no driver");
  const Result<PoolMemory> old = ChoosePoolMemory(BackendChoice::kAuto, "", std::vector{Gpu(0, "too old")});
  KVM_REQUIRE_OK(old);
  CHECK(old->Describe() == "host memory: GPU 0: too old");
  CHECK(ChoosePoolMemory(BackendChoice::kHost, "", std::vector{Gpu(0)})->Describe() == "host memory");
}

TEST_CASE("Pool memory: cuda without a usable GPU is an error", "[unit]") {
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kCuda, "", Visible(MakeError(Errc::kUnsupported, "no driver"))), Errc::kUnsupported,
                  "--backend cuda: no driver");
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kCuda, "", std::vector{Gpu(0, "too old")}), Errc::kUnsupported, "GPU 0: too old");
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kCuda, "", std::vector<DeviceInfo>()), Errc::kUnsupported, "no GPU is visible");
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kAuto, "0", Visible(MakeError(Errc::kUnsupported, "no driver"))), Errc::kUnsupported,
                  "--devices 0: no driver");
}

TEST_CASE("Pool memory: GPUs are named by ordinal or UUID, in the order given", "[unit]") {
  const Visible visible = std::vector{Gpu(0), Gpu(1, "too old"), Gpu(2)};
  CHECK(Ordinals(ChoosePoolMemory(BackendChoice::kAuto, "2,0", visible)) == std::vector{2, 0});
  CHECK(Ordinals(ChoosePoolMemory(BackendChoice::kCuda, FormatUuid(Gpu(2).uuid), visible)) == std::vector{2});
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kCuda, "3", visible), Errc::kNotFound, "no visible GPU is 3");
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kCuda, "0,,2", visible), Errc::kNotFound, "no visible GPU is");
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kCuda, "1", visible), Errc::kUnsupported, "too old");
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kCuda, "0," + FormatUuid(Gpu(0).uuid), visible), Errc::kInvalidArgument, "named twice");
  KVM_CHECK_ERROR(ChoosePoolMemory(BackendChoice::kHost, "0", visible), Errc::kInvalidArgument, "--backend host");
}
