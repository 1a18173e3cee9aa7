// Which memory the pools of replay and bench lie in: a GPU's or the host's.
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
  std::vector<DeviceInfo> devices;  // in the order in which workers take them; empty: host memory
  std::string why_host;             // where auto found no GPU

  bool cuda() const noexcept { return !devices.empty(); }
  std::string_view backend() const noexcept { return cuda() ? "cuda" : "host"; }
  // Zeros: host memory.
  DeviceUuid DeviceOfWorker(std::size_t worker) const noexcept {
    return cuda() ? devices[worker % devices.size()].uuid : DeviceUuid(kHostMemory);
  }
  // "host memory: no GPU is visible …", "cuda: GPU 0 (NVIDIA H100), GPU 1 (NVIDIA H100)"
  std::string Describe() const;
};

// `visible`: what ListDevices says. `wanted`: ordinals and UUIDs, separated by commas; empty: all usable ones.
// auto takes the GPUs if there are any that can be used, and the host otherwise; kCuda insists.
// kUnsupported: no usable GPU where one is needed, with the reason. kNotFound: no visible GPU is `wanted`.
// kInvalidArgument: `wanted` names one twice, or goes with kHost.
[[nodiscard]] Result<PoolMemory> ChoosePoolMemory(BackendChoice choice, const std::string& wanted,
                                                  const Result<std::vector<DeviceInfo>>& visible);

// The same with the GPUs of this process, which --backend host does not ask for.
[[nodiscard]] Result<PoolMemory> ChoosePoolMemory(BackendChoice choice, const std::string& wanted);

// [{"ordinal", "uuid", "name"}, …]
boost::json::array DevicesJson(const std::vector<DeviceInfo>& devices);

}  // namespace kvm::ctl
