// kvctl exporter: asks kvmd at each scrape, as a monitor, which belongs to no domain.
#include "client/kvctl/exporter/exporter.h"

#include <filesystem>
#include <iostream>
#include <optional>
#include <string_view>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/exporter/host_header.h"
#include "client/kvctl/exporter/http_server.h"
#include "client/kvctl/exporter/listening_sockets.h"
#include "client/kvctl/exporter/status_metrics.h"

namespace kvm::ctl {
namespace {

constexpr const char* kTextFormat = "text/plain; version=0.0.4; charset=utf-8";

// A connection to kvmd that is kept between scrapes.
class Kvmd {
 public:
  explicit Kvmd(const CommonOptions& common) : common_(common) {}

  [[nodiscard]] Result<MetricPage> Ask() {
    // kvmd may have been restarted since the last scrape.
    const bool kept = connection_.has_value();
    Result<MetricPage> page = AskOnce();
    if (!page && kept) page = AskOnce();
    return page;
  }

 private:
  [[nodiscard]] Result<MetricPage> AskOnce() {
    const auto begin = std::chrono::steady_clock::now();
    if (!connection_) {
      Result<Observer> connected = Observer::ConnectAsMonitor(common_.socket, common_.timeout());
      if (!connected) return connected.error();
      connection_.emplace(std::move(*connected));
    }
    kvmwire::StatusQuery query;
    query.set_clients(true);
    query.set_memory(true);
    Result<kvmwire::StatusReply> status = connection_->Query(query);
    if (!status) {
      connection_.reset();
      return status.error();
    }
    return MetricsOf(*status, std::chrono::steady_clock::now() - begin);
  }

  const CommonOptions& common_;
  std::optional<Observer> connection_;
};

// Says when kvmd's answers end, and when they come again.
class Reachability {
 public:
  void Note(const Status& status) {
    if (status.has_value() == reachable_) return;
    reachable_ = status.has_value();
    std::cerr << "kvctl: " << (reachable_ ? std::string("kvmd answers again") : Printable(status.error().ToString())) << std::endl;
  }

 private:
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
  if (options.list) {
    PrintMetricTable();
    return kHealthy;
  }
  Kvmd kvmd(common);
  if (options.once) {
    Result<MetricPage> page = kvmd.Ask();
    if (!page) return Fail(page.error());
    std::cout << page->Text();
    return kHealthy;
  }
  Result<ListeningSockets> sockets = ListeningSockets::Passed();
  if (!sockets) return Fail(sockets.error());
  if (Status listens = Listen(common, options, *sockets); !listens) return Fail(listens.error());
  for (const std::string& name : sockets->names()) std::cerr << "kvctl: metrics on " << name << std::endl;
  Reachability reachability;
  const auto content = [&](std::string_view path) -> std::optional<HttpContent> {
    if (path == "/") return HttpContent{"text/html; charset=utf-8", "<title>kvmd</title><a href=\"/metrics\">Metrics</a>\n"};
    if (path != "/metrics") return std::nullopt;
    Result<MetricPage> page = kvmd.Ask();
    reachability.Note(page ? Status() : Status(page.error()));
    return HttpContent{kTextFormat, page ? page->Text() : MetricsWithoutKvmd().Text()};
  };
  HttpServer server(sockets->TakeSockets(), content, [&](std::string_view host) { return HostIsAllowed(host, options.allow_host); });
  server.Run();
  return kHealthy;
}

}  // namespace kvm::ctl
