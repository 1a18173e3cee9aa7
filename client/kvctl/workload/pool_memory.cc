#include "client/kvctl/workload/pool_memory.h"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>

#include <algorithm>
#include <sstream>

#include "client/kvctl/cli/text.h"

namespace kvm::ctl {
namespace {

Result<DeviceInfo> FindDevice(const std::vector<DeviceInfo>& visible, const std::string& name) {
  const Result<DeviceUuid> uuid = ParseUuid(name);
  const auto named = [&](const DeviceInfo& device) { return uuid ? device.uuid == *uuid : std::to_string(device.ordinal) == name; };
  const auto found = std::find_if(visible.begin(), visible.end(), named);
  if (found == visible.end()) return MakeError(Errc::kNotFound, "--devices: no visible GPU is " + name + "; see kvctl topo");
  if (!found->unusable.empty()) return MakeError(Errc::kUnsupported, "--devices: GPU " + name + ": " + found->unusable);
  return *found;
}

Result<std::vector<DeviceInfo>> FindDevices(const std::vector<DeviceInfo>& visible, const std::string& wanted) {
  std::vector<DeviceInfo> devices;
  std::istringstream names(wanted);
  for (std::string name; std::getline(names, name, ',');) {
    Result<DeviceInfo> device = FindDevice(visible, name);
    if (!device) return device.error();
    const auto same = [&](const DeviceInfo& other) { return other.uuid == device->uuid; };
    if (std::any_of(devices.begin(), devices.end(), same))
      return MakeError(Errc::kInvalidArgument, "--devices: " + name + " is named twice");
    devices.push_back(std::move(*device));
  }
  return devices;
}

}  // namespace

std::string PoolMemory::Describe() const {
  if (!cuda()) return why_host.empty() ? "host memory" : "host memory: " + why_host;
  std::vector<std::string> names;
  for (const DeviceInfo& device : devices) names.push_back("GPU " + std::to_string(device.ordinal) + " (" + device.name + ")");
  return "cuda: " + JoinWithCommas(names);
}

Result<PoolMemory> ChoosePoolMemory(BackendChoice choice, const std::string& wanted, const Result<std::vector<DeviceInfo>>& visible) {
  PoolMemory memory;
  if (choice == BackendChoice::kHost) {
    if (!wanted.empty()) return MakeError(Errc::kInvalidArgument, "--devices names GPUs, --backend host uses none");
    return memory;
  }
  const bool insists = choice == BackendChoice::kCuda || !wanted.empty();
  const std::string option = wanted.empty() ? "--backend cuda: " : "--devices " + wanted + ": ";
  if (!visible) {
    if (insists) return MakeError(visible.error().code, option + visible.error().message);
    memory.why_host = visible.error().message;
    return memory;
  }
  if (!wanted.empty()) {
    Result<std::vector<DeviceInfo>> devices = FindDevices(*visible, wanted);
    if (!devices) return devices.error();
    memory.devices = std::move(*devices);
    return memory;
  }
  std::string unusable = "no GPU is visible to this process";
  for (const DeviceInfo& device : *visible) {
    if (device.unusable.empty())
      memory.devices.push_back(device);
    else
      unusable = "GPU " + std::to_string(device.ordinal) + ": " + device.unusable;
  }
  if (memory.cuda()) return memory;
  if (insists) return MakeError(Errc::kUnsupported, option + unusable);
  memory.why_host = unusable;
  return memory;
}

Result<PoolMemory> ChoosePoolMemory(BackendChoice choice, const std::string& wanted) {
  if (choice == BackendChoice::kHost) return ChoosePoolMemory(choice, wanted, std::vector<DeviceInfo>());
  return ChoosePoolMemory(choice, wanted, ListDevices());
}

boost::json::array DevicesJson(const std::vector<DeviceInfo>& devices) {
  boost::json::array array;
  for (const DeviceInfo& device : devices) {
    array.push_back(boost::json::object{{"ordinal", device.ordinal}, {"uuid", FormatUuid(device.uuid)}, {"name", device.name}});
  }
  return array;
}

}  // namespace kvm::ctl
