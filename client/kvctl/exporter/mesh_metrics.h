// What a kvmd-mesh says of itself, as metrics.
#pragma once

#include <string>

#include "client/kvctl/exporter/metric_page.h"
#include "kvm/error.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::ctl {

// `answer`: to a status query at `socket`, or why there is none.
void AddMesh(MetricPage& page, const std::string& socket, const Result<kvmmesh::LocalMessage>& answer);

}  // namespace kvm::ctl
