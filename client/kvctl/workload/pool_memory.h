// PoolMemory: the memory for the pools of replay and bench: that of GPUs, or host memory.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/device.h"

namespace boost::json {
class array;
}

namespace kvm::ctl {

enum class BackendChoice { kAuto, kHost, kCuda };

struct PoolMemory {
  // In the order in which they are assigned to workers; empty: host memory
  std::vector<DeviceInfo> devices;
  std::string why_host;  // if auto found no GPU: why

  bool cuda() const noexcept { return !devices.empty(); }
  std::string_view backend() const noexcept { return cuda() ? "cuda" : "host"; }
  // Zeros: host memory.
  DeviceUuid DeviceOfWorker(std::size_t worker) const noexcept {
    return cuda() ? devices[worker % devices.size()].uuid : DeviceUuid(kHostMemory);
  }
  // "host memory: no GPU is visible …", "cuda: GPU 0 (NVIDIA H100), GPU 1 (NVIDIA H100)"
  std::string Describe() const;
};

// `visible`: the result of ListDevices. `wanted`: ordinals and UUIDs, separated by commas; empty:
// all usable GPUs. kAuto chooses the usable GPUs if there are any, and host memory otherwise; kCuda
// is an error without a usable GPU. kUnsupported: no usable GPU although one is needed, with the
// reason. kNotFound: no visible GPU is `wanted`.
// kInvalidArgument: `wanted` names a GPU twice, or is given with kHost.
[[nodiscard]] Result<PoolMemory> ChoosePoolMemory(BackendChoice choice, const std::string& wanted,
                                                  const Result<std::vector<DeviceInfo>>& visible);

// The same with the GPUs of this process. With kHost, CUDA is not called.
[[nodiscard]] Result<PoolMemory> ChoosePoolMemory(BackendChoice choice, const std::string& wanted);

// [{"ordinal", "uuid", "name"}, …]
boost::json::array DevicesJson(const std::vector<DeviceInfo>& devices);

}  // namespace kvm::ctl
