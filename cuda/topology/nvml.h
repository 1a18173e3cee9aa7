// What only NVIDIA's management library knows: whether two GPUs are joined by NVLink, and by how many.
//
// Loaded when first asked and never unloaded; where it isn't there, everything is "unknown". Thread-safe.
#pragma once

#include <optional>
#include <string>

namespace kvm {

// Whether peer access between two GPUs ("0000:0f:00.0") goes over NVLink.
std::optional<bool> NvmlPeersOverNvlink(const std::string& pci_a, const std::string& pci_b);

// Active NVLinks of a GPU. Behind NVSwitch all of them lead to every other GPU.
std::optional<unsigned> NvmlActiveLinks(const std::string& pci);

}  // namespace kvm
