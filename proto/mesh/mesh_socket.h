// Where a user's kvmd-mesh listens for the workers of its node.
#pragma once

#include <unistd.h>

#include <string>

namespace kvm::mesh {

inline std::string DefaultMeshSocket() { return "/run/kvmd-mesh/" + std::to_string(::geteuid()) + "/mesh.sock"; }

}  // namespace kvm::mesh
