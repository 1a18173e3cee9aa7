// Command line of kvctl exporter.
#include <CLI/CLI.hpp>

#include <memory>

#include "client/kvctl/exporter/exporter.h"

namespace kvm::ctl {

void AddExporterCommand(CLI::App& app, const CommonOptions& common, Action& action) {
  auto options = std::make_shared<ExporterOptions>();
  CLI::App* command = app.add_subcommand("exporter", "Serves kvmd's metrics to Prometheus, and a page to look at, over HTTP");
  command->add_option("--listen", options->listen, "Unix socket to serve on; default: exporter.sock beside kvmd's");
  command->add_option("--listen-mode", options->listen_mode, "Mode of that socket")->capture_default_str();
  command->add_option("--listen-tcp", options->listen_tcp, "Also serve on this loopback address: 127.0.0.1:9464");
  command->add_option("--allow-host", options->allow_host, "Also answer requests for this host name, which a proxy passes on");
  command->add_option("--mesh-socket", options->mesh_sockets,
                      "Also metrics of the kvmd-mesh that listens there; of one user's, or root asks");
  command->add_option("--mesh-sockets-in", options->mesh_sockets_in,
                      "Also of each kvmd-mesh that has a socket in this directory, looked at each time");
  command->add_flag("--once", options->once, "Print the metrics, and serve nothing");
  command->add_flag("--list", options->list, "Print the table of metrics; needs no kvmd");
  command->footer("Root and kvmd's user see all domains, other users their own. Sockets that the service manager passes replace --listen.");
  command->callback([&common, &action, options] { action = [&common, options] { return RunExporter(common, *options); }; });
}

}  // namespace kvm::ctl
