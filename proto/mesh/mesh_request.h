// Requests to mesh processes of this node, over their Unix sockets. Client::JoinCache and kvctl
// call them.
#pragma once

#include <chrono>
#include <span>
#include <string>
#include <vector>

#include "kvm/error.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

// `interrupted`: looked at some times a second while this waits; null: nothing interrupts it.
// kUnavailable: no process listens, or it has ended the connection. kDeadlineExceeded; also if
// interrupted. kProtocol: the answer is not valid. Waits no longer than until `deadline`.
[[nodiscard]] Result<kvmmesh::LocalMessage> AskMesh(const std::string& socket_path, const kvmmesh::LocalMessage& request,
                                                    std::chrono::steady_clock::time_point deadline, bool (*interrupted)() = nullptr);

// Asks all of them before it waits for the first answer, so that one that does not answer costs its
// own answer only, and all together no more than until `deadline`. An answer or an error for each
// path, as of AskMesh; kDeadlineExceeded also where too many connections wait to be accepted.
[[nodiscard]] std::vector<Result<kvmmesh::LocalMessage>> AskMeshes(std::span<const std::string> socket_paths,
                                                                   const kvmmesh::LocalMessage& request,
                                                                   std::chrono::steady_clock::time_point deadline);

}  // namespace kvm::mesh
