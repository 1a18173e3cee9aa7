// Whether two nodes can understand each other, by what one says in its hello. `name`: of the other
// node, in the message.
#pragma once

#include <string>

#include "kvm/error.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

// kVersionMismatch: it speaks another version of the protocol.
[[nodiscard]] Status CheckVersion(const kvmmesh::Hello& hello, const std::string& name);
// kPermissionDenied: it is not of `domain`, this node's.
[[nodiscard]] Status CheckDomain(const kvmmesh::Hello& hello, const std::string& name, const std::string& domain);

}  // namespace kvm::mesh
