#include "client/mesh/node/peers/hello_checks.h"

#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {

Status CheckVersion(const kvmmesh::Hello& hello, const std::string& name) {
  if (hello.version() == kMeshVersion) return {};
  return MakeError(Errc::kVersionMismatch,
                   name + " has version " + std::to_string(hello.version()) + " of the protocol, this one " + std::to_string(kMeshVersion));
}

Status CheckDomain(const kvmmesh::Hello& hello, const std::string& name, const std::string& domain) {
  if (hello.domain() == domain) return {};
  return MakeError(Errc::kPermissionDenied, name + " is of domain " + hello.domain() + ", this one of " + domain);
}

}  // namespace kvm::mesh
