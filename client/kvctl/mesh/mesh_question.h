// How kvctl's mesh commands ask kvmd-mesh.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "client/kvctl/cli/common_options.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::ctl {

// `socket`: of kvmd-mesh; empty: this user's.
[[nodiscard]] Result<kvmmesh::LocalMessage> AskMesh(const CommonOptions& common, const std::string& socket,
                                                    const kvmmesh::LocalMessage& request);
[[nodiscard]] Result<kvmmesh::LocalMessage> AskMeshStatus(const CommonOptions& common, const std::string& socket);
// Of all of them at once: together they take no longer than the timeout.
[[nodiscard]] std::vector<Result<kvmmesh::LocalMessage>> AskMeshStatuses(const CommonOptions& common, std::span<const std::string> sockets);
// Prints why there is no answer of the kind that was wanted; returns the process's exit code.
int FailWithoutAnswer(const Result<kvmmesh::LocalMessage>& answer);

}  // namespace kvm::ctl
