// Queries of NVIDIA's management library: whether two GPUs are joined by NVLink, and by how many
// links.
//
// The library is loaded at the first query and never unloaded; without it, all answers are empty
// (unknown). Thread-safe.
#pragma once

#include <optional>
#include <string>

namespace kvm {

// Whether peer access between two GPUs ("0000:0f:00.0") goes over NVLink.
std::optional<bool> NvmlPeersOverNvlink(const std::string& pci_a, const std::string& pci_b);

// Active NVLinks of a GPU. Behind NVSwitch all of them lead to every other GPU.
std::optional<unsigned> NvmlActiveLinks(const std::string& pci);

}  // namespace kvm
