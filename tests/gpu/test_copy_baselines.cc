// The baselines of kvm_bench: what CUDA's own copies cost.
#include "kvm/device.h"
#include "tests/bench/copy_baselines.h"
#include "tests/gpu/local_region.h"

namespace {

using namespace kvm;
using bench::BaselineCall;
using bench::CopyBaseline;
using bench::MeasureCopy;

}  // namespace

TEST_CASE("Copy baselines: as many readings as asked for, and wrong sizes are refused", "[gpu]") {
  KVM_NEED_GPUS(1);
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  KVM_REQUIRE_OK(devices);
  CopyBaseline baseline;
  baseline.importer = devices->front().uuid;
  baseline.owner = devices->back().uuid;
  baseline.bytes = 1 << 20;
  baseline.rounds = 3;
  for (const BaselineCall call : {BaselineCall::kContiguous, BaselineCall::kEachChunk, BaselineCall::kBatch}) {
    baseline.call = call;
    const Result<std::vector<double>> seconds = MeasureCopy(baseline);
    // No peer access, or an older toolkit
    if (!seconds && seconds.error().code == Errc::kUnsupported) continue;
    KVM_REQUIRE_OK(seconds);
    CHECK(seconds->size() == 3);
    for (const double second : *seconds) CHECK(second > 0);
  }
  baseline.bytes = baseline.chunk_bytes + 1;
  KVM_CHECK_ERROR(MeasureCopy(baseline), Errc::kInvalidArgument, "multiple of chunk_bytes");
}
