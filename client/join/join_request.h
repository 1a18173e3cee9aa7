// One request to the mesh process of this node, over its Unix socket. Client::JoinCache calls it.
#pragma once

#include <string>

#include "kvclient/types.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm {

// kUnavailable: no process listens, or it has ended the connection. kDeadlineExceeded; also if this
// thread is interrupted. kProtocol: the answer is not valid. Waits no longer than until `deadline`.
[[nodiscard]] Result<kvmmesh::LocalMessage> AskMesh(const std::string& socket_path, const kvmmesh::LocalMessage& request,
                                                    Deadline deadline);

}  // namespace kvm
