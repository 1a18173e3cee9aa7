#include "client/kvctl/mesh/mesh_question.h"

#include "client/kvctl/cli/exit_codes.h"
#include "proto/mesh/mesh_request.h"
#include "proto/mesh/mesh_socket.h"

namespace kvm::ctl {
namespace {

kvmmesh::LocalMessage StatusQuery() {
  kvmmesh::LocalMessage request;
  request.mutable_status_query();
  return request;
}

}  // namespace

Result<kvmmesh::LocalMessage> AskMesh(const CommonOptions& common, const std::string& socket, const kvmmesh::LocalMessage& request) {
  return mesh::AskMesh(socket.empty() ? mesh::DefaultMeshSocket() : socket, request, std::chrono::steady_clock::now() + common.timeout());
}

int FailWithoutAnswer(const Result<kvmmesh::LocalMessage>& answer) {
  return Fail(answer ? MakeError(Errc::kProtocol, "kvmd-mesh answered with something else") : answer.error());
}

Result<kvmmesh::LocalMessage> AskMeshStatus(const CommonOptions& common, const std::string& socket) {
  return AskMesh(common, socket, StatusQuery());
}

std::vector<Result<kvmmesh::LocalMessage>> AskMeshStatuses(const CommonOptions& common, std::span<const std::string> sockets) {
  return mesh::AskMeshes(sockets, StatusQuery(), std::chrono::steady_clock::now() + common.timeout());
}

}  // namespace kvm::ctl
