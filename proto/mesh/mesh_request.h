// One request to the mesh process of this node, over its Unix socket. Client::JoinCache and kvctl
// call it.
#pragma once

#include <chrono>
#include <string>

#include "kvm/error.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

// `interrupted`: looked at some times a second while this waits; null: nothing interrupts it.
// kUnavailable: no process listens, or it has ended the connection. kDeadlineExceeded; also if
// interrupted. kProtocol: the answer is not valid. Waits no longer than until `deadline`.
[[nodiscard]] Result<kvmmesh::LocalMessage> AskMesh(const std::string& socket_path, const kvmmesh::LocalMessage& request,
                                                    std::chrono::steady_clock::time_point deadline, bool (*interrupted)() = nullptr);

}  // namespace kvm::mesh
