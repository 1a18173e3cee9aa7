// kvctl exporter: kvmd's metrics for Prometheus on /metrics, and a page for people on /, over HTTP.
#pragma once

#include <string>
#include <vector>

#include "client/kvctl/cli/common_options.h"

namespace kvm::ctl {

struct ExporterOptions {
  // Path of a Unix socket; empty: exporter.sock beside kvmd's
  std::string listen;
  std::string listen_mode = "0660";       // of that socket
  std::vector<std::string> listen_tcp;    // addresses of the loopback interface, with port
  std::vector<std::string> allow_host;    // names that TCP requests may have (host_header.h)
  std::vector<std::string> mesh_sockets;  // of kvmd-mesh processes to ask, too
  std::string mesh_sockets_in;            // a directory of more; empty: none
  bool once = false;                      // print the metrics and return
  bool list = false;                      // print the table of metrics and return
};
int RunExporter(const CommonOptions& common, const ExporterOptions& options);

}  // namespace kvm::ctl
