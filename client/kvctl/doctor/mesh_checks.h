// Checks of kvctl doctor over what this user's kvmd-mesh says of itself: whether it has kvmd, its
// peers, etcd and its disk.
#pragma once

#include <string>
#include <vector>

#include "client/kvctl/doctor/doctor_checks.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::ctl {

// `domain`: that kvmd has given to this kvctl; empty: kvmd was not reached. The first check is of
// the peers; one more for each other finding.
std::vector<Check> CheckMesh(const kvmmesh::Status& status, const std::string& domain);

}  // namespace kvm::ctl
