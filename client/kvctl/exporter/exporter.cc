// kvctl exporter: asks kvmd at each scrape, as a monitor, which belongs to no domain.
#include "client/kvctl/exporter/exporter.h"

#include <filesystem>
#include <iostream>
#include <optional>
#include <string_view>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/kept_monitor.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/exporter/host_header.h"
#include "client/kvctl/exporter/http_server.h"
#include "client/kvctl/exporter/listening_sockets.h"
#include "client/kvctl/exporter/mesh_metrics.h"
#include "client/kvctl/exporter/mesh_sockets.h"
#include "client/kvctl/exporter/status_metrics.h"
#include "client/kvctl/mesh/mesh_question.h"
#include "client/kvctl/page/status_page.h"

namespace kvm::ctl {
namespace {

constexpr const char* kTextFormat = "text/plain; version=0.0.4; charset=utf-8";
constexpr std::uint32_t kHotPrefixes = 20;  // that the page shows

// `hot`: so many of the hottest prefixes, and what clients say of their last misses.
kvmwire::StatusQuery QueryFor(std::uint32_t hot = 0) {
  kvmwire::StatusQuery query;
  query.set_clients(true);
  query.set_memory(true);
  query.set_models(true);
  query.set_hot(hot);
  query.set_details(hot > 0);
  return query;
}

// All kvmd-mesh together are asked for no longer than the timeout.
void AddMeshes(MetricPage& page, const CommonOptions& common, MeshSockets& sockets) {
  const std::vector<std::string> paths = sockets.Find();
  const std::vector<Result<kvmmesh::LocalMessage>> answers = AskMeshStatuses(common, paths);
  for (std::size_t i = 0; i < paths.size(); ++i) AddMesh(page, paths[i], answers[i]);
}

// What is served, and what has been seen. Says when kvmd's answers end, and when they come again.
class Contents {
 public:
  Contents(const CommonOptions& common, MeshSockets& meshes) : common_(common), meshes_(meshes), kvmd_(common) {}

  std::optional<HttpContent> Of(std::string_view path, bool by_tcp) {
    if (path == "/metrics") return Metrics();
    if (path == "/") return Page(by_tcp ? Keys::kHidden : Keys::kShown);
    return std::nullopt;
  }

 private:
  HttpContent Metrics() {
    const auto begin = std::chrono::steady_clock::now();
    const Result<kvmwire::StatusReply> status = kvmd_.AskAgain(QueryFor());
    Note(status);
    MetricPage page = status ? MetricsOf(*status, std::chrono::steady_clock::now() - begin) : MetricsWithoutKvmd();
    AddMeshes(page, common_, meshes_);
    return {kTextFormat, page.Text()};
  }
  HttpContent Page(Keys keys) {
    const Result<kvmwire::StatusReply> status = kvmd_.AskAgain(QueryFor(kHotPrefixes));
    Note(status);
    const std::string why = status ? "" : Printable(status.error().ToString());
    return {"text/html; charset=utf-8", StatusPage(status ? &*status : nullptr, why, history_, std::chrono::system_clock::now(), keys),
            StatusPagePolicy()};
  }
  void Note(const Result<kvmwire::StatusReply>& status) {
    const auto now = std::chrono::system_clock::now();
    if (status) {
      history_.Add(*status, now);
    } else {
      history_.NoteAway(Printable(status.error().ToString()), now);
    }
    if (status.has_value() == reachable_) return;
    reachable_ = status.has_value();
    std::cerr << "kvctl: " << (reachable_ ? std::string("kvmd answers again") : Printable(status.error().ToString())) << std::endl;
  }

  const CommonOptions& common_;
  MeshSockets& meshes_;
  KeptMonitor kvmd_;
  StatusHistory history_;
  bool reachable_ = true;
};

void PrintMetricTable() {
  std::cout << "| metric | type | labels | meaning |\n|---|---|---|---|\n";
  for (const MetricDescription& metric : kMetrics) {
    std::cout << "| `" << metric.name << "` | " << KindName(metric.kind) << " | " << metric.labels << " | " << metric.help << " |\n";
  }
}

Status Listen(const CommonOptions& common, const ExporterOptions& options, ListeningSockets& sockets) {
  if (!sockets.empty()) return {};
  const std::string beside = (std::filesystem::path(common.socket).parent_path() / "exporter.sock").string();
  if (Status listens = sockets.ListenOnPath(options.listen.empty() ? beside : options.listen, options.listen_mode); !listens)
    return listens;
  for (const std::string& address : options.listen_tcp) {
    if (Status listens = sockets.ListenOnTcp(address); !listens) return listens;
  }
  return {};
}

}  // namespace

int RunExporter(const CommonOptions& common, const ExporterOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  if (options.list) {
    PrintMetricTable();
    return kHealthy;
  }
  MeshSockets meshes(options.mesh_sockets, options.mesh_sockets_in);
  Contents contents(common, meshes);
  if (options.once) {
    const Result<kvmwire::StatusReply> status = KeptMonitor(common).Ask(QueryFor());
    if (!status) return Fail(status.error());
    MetricPage page = MetricsOf(*status, std::chrono::steady_clock::now() - begin);
    AddMeshes(page, common, meshes);
    std::cout << page.Text();
    return kHealthy;
  }
  Result<ListeningSockets> sockets = ListeningSockets::Passed();
  if (!sockets) return Fail(sockets.error());
  if (Status listens = Listen(common, options, *sockets); !listens) return Fail(listens.error());
  for (const std::string& name : sockets->names()) std::cerr << "kvctl: metrics on " << name << std::endl;
  HttpServer server(
      sockets->TakeSockets(), [&](std::string_view path, bool by_tcp) { return contents.Of(path, by_tcp); },
      [&](std::string_view host, bool by_tcp) {
        // Who may open a Unix socket is decided by its file. But a browser may get there, too, by a
        // forwarded port: no web site has a name without a dot.
        return (!by_tcp && host.find('.') == host.npos) || HostIsAllowed(host, options.allow_host);
      });
  server.Run();
  return kHealthy;
}

}  // namespace kvm::ctl
