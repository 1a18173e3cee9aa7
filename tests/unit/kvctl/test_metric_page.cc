// The metrics of kvctl exporter: the table, and the page that is made of a status.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "client/kvctl/exporter/mesh_metrics.h"
#include "client/kvctl/exporter/metric_page.h"
#include "client/kvctl/exporter/metric_table.h"
#include "client/kvctl/exporter/status_metrics.h"
#include "proto/shm/layout.h"
#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;

kvmwire::MemoryGroup Group(const std::string& model, const std::string& fingerprint) {
  kvmwire::MemoryGroup group;
  group.set_model_id(model);
  group.set_fingerprint(fingerprint);
  group.set_handle_kind(static_cast<std::uint32_t>(layout::HandleKind::kCudaVmmFd));
  group.set_device_uuid(std::string(16, '\x11'));
  group.set_regions(2);
  group.set_blocks(100);
  group.set_bytes(6400);
  group.set_entries(60);
  return group;
}

// Of a kvmd with one domain and a host cache.
kvmwire::StatusReply FullStatus() {
  kvmwire::StatusReply status;
  status.set_server_version("0.2.0");
  status.set_started_ms(1'700'000'000'250);
  status.mutable_host_cache()->set_policy("hit-density");
  status.mutable_host_cache()->set_admission("publish");
  kvmwire::DomainStatus& domain = *status.add_domains();
  domain.set_name("uid-1000");
  domain.set_entries(60);
  domain.mutable_counters()->set_evicted(7);
  kvmwire::StatsReport& totals = *domain.mutable_client_totals();
  totals.set_keys_looked_up(100);
  totals.set_keys_matched(70);
  totals.set_blocks_imported(50);
  totals.set_blocks_from_host_cache(20);
  totals.set_misses_stale(3);
  totals.set_blocks_corrupt(2);
  totals.set_imports_failed_stale(6);
  totals.set_imports_failed_corrupt(1);
  totals.set_computing_waits(9);
  totals.set_computing_waits_in_vain(4);
  for (const std::uint64_t count : {0u, 5u, 0u, 2u}) totals.mutable_lookup_times()->add_counts(count);
  totals.mutable_lookup_times()->set_sum_ns(24'000);
  kvmwire::DeviceTraffic& pair = *totals.add_traffic();
  pair.set_from_device(std::string(16, '\x11'));
  pair.set_blocks(50);
  pair.set_bytes(3200);
  domain.mutable_host_cache()->set_blocks(5);
  kvmwire::ModelTotals& model = *domain.add_model_totals();
  model.set_model_id("org/model");
  model.set_fingerprint(std::string(32, '\xab'));
  model.mutable_counters()->set_keys_looked_up(40);
  model.mutable_counters()->set_keys_matched(30);
  model.mutable_counters()->set_misses_stale(2);
  model.mutable_counters()->set_imports_failed_stale(5);
  model.mutable_counters()->set_blocks_imported(12);
  model.mutable_counters()->set_blocks_from_host_cache(4);
  *domain.add_memory() = Group("org/model", std::string(32, '\xab'));
  return status;
}

// Of a kvmd-mesh with three peers, a disk cache, and events.
kvmmesh::LocalMessage FullMesh() {
  kvmmesh::LocalMessage message;
  kvmmesh::Status& status = *message.mutable_status();
  status.set_domain("uid-1000");
  status.set_node("a");
  status.set_joined_blocks(12);
  for (const char* name : {"b", "c", "d"}) {
    kvmmesh::PeerStatus& peer = *status.add_peers();
    peer.set_node(name);
    peer.set_fresh(*name != 'd');
    peer.set_fetched_blocks(6);
  }
  status.mutable_peers(1)->set_shunned(true);
  status.mutable_disk()->set_state("paused");
  status.mutable_disk()->set_blocks(30);
  status.mutable_events()->set_blocks(16);
  status.mutable_events()->set_unreachable_blocks(3);
  status.mutable_events()->set_removed_blocks(4);
  status.mutable_events()->set_snapshots(1);
  return message;
}

std::string TextOf(const kvmwire::StatusReply& status) { return MetricsOf(status, std::chrono::microseconds(500)).Text(); }

bool HasLine(const std::string& text, const std::string& line) { return ("\n" + text).find("\n" + line + "\n") != std::string::npos; }

std::size_t LinesThatBegin(const std::string& text, const std::string& with) {
  std::size_t lines = 0;
  for (std::size_t at = text.find("\n" + with); at != text.npos; at = text.find("\n" + with, at + 1)) ++lines;
  return lines;
}

}  // namespace

TEST_CASE("Metrics: a name is used once, begins with kvmd_, and counters alone end in _total", "[unit]") {
  std::set<std::string_view> names;
  for (const MetricDescription& metric : kMetrics) {
    INFO(metric.name);
    CHECK(names.insert(metric.name).second);
    CHECK(metric.name.starts_with("kvmd_"));
    CHECK(metric.name.ends_with("_total") == (metric.kind == MetricKind::kCounter));
    CHECK(metric.help.ends_with("."));
    CHECK(metric.help.find('|') == metric.help.npos);
  }
}

TEST_CASE("Metrics: a full status gives every metric of the table, with the labels of the table", "[unit]") {
  MetricPage page = MetricsOf(FullStatus(), std::chrono::microseconds(500));
  AddMesh(page, "/run/mesh.sock", FullMesh());
  REQUIRE(page.families().size() == kMetrics.size());
  for (std::size_t i = 0; i < kMetrics.size(); ++i) {
    const prometheus::MetricFamily& family = page.families()[i];
    INFO(kMetrics[i].name);
    CHECK(family.name == kMetrics[i].name);
    REQUIRE_FALSE(family.metric.empty());
    for (const prometheus::ClientMetric& metric : family.metric) {
      std::string labels;
      for (const auto& label : metric.label) labels += (labels.empty() ? "" : " ") + label.name;
      CHECK(labels == kMetrics[i].labels);
    }
  }
}

TEST_CASE("Metrics: the text of a known status", "[unit]") {
  const std::string text = TextOf(FullStatus());
  INFO(text);
  CHECK(HasLine(text, "# TYPE kvmd_up gauge"));
  CHECK(HasLine(text, "kvmd_up 1"));
  CHECK(HasLine(text, "kvmd_build_info{version=\"0.2.0\"} 1"));
  CHECK(HasLine(text, "# TYPE kvmd_dropped_blocks_total counter"));
  CHECK(HasLine(text, "kvmd_dropped_blocks_total{domain=\"uid-1000\",reason=\"evicted\"} 7"));
  CHECK(HasLine(text, "kvmd_lookup_keys_total{domain=\"uid-1000\",result=\"found\"} 70"));
  CHECK(HasLine(text, "kvmd_lookup_keys_total{domain=\"uid-1000\",result=\"missed\"} 30"));
  CHECK(HasLine(text, "kvmd_misses_total{domain=\"uid-1000\",reason=\"stale\"} 3"));
  CHECK(HasLine(text, "kvmd_corrupt_blocks_total{domain=\"uid-1000\"} 2"));
  CHECK(HasLine(text, "kvmd_failed_imports_total{domain=\"uid-1000\",reason=\"stale\"} 6"));
  CHECK(HasLine(text, "kvmd_failed_imports_total{domain=\"uid-1000\",reason=\"unmapped\"} 0"));
  CHECK(HasLine(text, "kvmd_failed_imports_total{domain=\"uid-1000\",reason=\"corrupt\"} 1"));
  CHECK(HasLine(
      text, "kvmd_device_imported_bytes_total{domain=\"uid-1000\",from=\"GPU-11111111-1111-1111-1111-111111111111\",to=\"host\"} 3200"));
  CHECK(HasLine(text, "kvmd_computing_waits_total{domain=\"uid-1000\",result=\"found\"} 5"));
  CHECK(HasLine(text, "kvmd_computing_waits_total{domain=\"uid-1000\",result=\"in_vain\"} 4"));
  CHECK(HasLine(text, "kvmd_imported_blocks_total{domain=\"uid-1000\",source=\"worker\"} 30"));
  CHECK(HasLine(text, "kvmd_imported_blocks_total{domain=\"uid-1000\",source=\"host_cache\"} 20"));
  const std::string of_model = "{domain=\"uid-1000\",model=\"org/model\",fingerprint=\"abababababab\",";
  CHECK(HasLine(text, "kvmd_model_lookup_keys_total" + of_model + "result=\"found\"} 30"));
  CHECK(HasLine(text, "kvmd_model_lookup_keys_total" + of_model + "result=\"missed\"} 10"));
  CHECK(HasLine(text, "kvmd_model_misses_total" + of_model + "reason=\"stale\"} 2"));
  CHECK(HasLine(text, "kvmd_model_failed_imports_total" + of_model + "reason=\"stale\"} 5"));
  CHECK(HasLine(text, "kvmd_model_imported_blocks_total" + of_model + "source=\"worker\"} 8"));
  CHECK(HasLine(text, "kvmd_model_imported_blocks_total" + of_model + "source=\"host_cache\"} 4"));
  CHECK(HasLine(text,
                "kvmd_pool_indexed_blocks{domain=\"uid-1000\",model=\"org/model\",fingerprint=\"abababababab\","
                "device=\"GPU-11111111-1111-1111-1111-111111111111\",path=\"cuda_vmm_fd\",owner=\"worker\"} 60"));
  CHECK(text.find("kvmd_start_time_seconds 1700000000.25") != text.npos);
}

TEST_CASE("Metrics: the text of a known kvmd-mesh, and of one that does not answer", "[unit]") {
  MetricPage page;
  AddMesh(page, "/run/a.sock", FullMesh());
  AddMesh(page, "/run/b.sock", MakeError(Errc::kUnavailable, "no process listens"));
  const std::string text = page.Text();
  INFO(text);
  const std::string node = "domain=\"uid-1000\",node=\"a\"";
  CHECK(HasLine(text, "kvmd_mesh_up{socket=\"/run/a.sock\"} 1"));
  CHECK(HasLine(text, "kvmd_mesh_up{socket=\"/run/b.sock\"} 0"));
  CHECK(HasLine(text, "kvmd_mesh_joined_blocks_total{" + node + "} 12"));
  for (const char* state : {"answers", "silent", "shunned"})
    CHECK(HasLine(text, "kvmd_mesh_peers{" + node + ",state=\"" + state + "\"} 1"));
  CHECK(HasLine(text, "kvmd_mesh_fetched_blocks_total{" + node + ",peer=\"b\"} 6"));
  CHECK(HasLine(text, "kvmd_mesh_disk_on{" + node + "} 0"));
  CHECK(HasLine(text, "kvmd_mesh_disk_blocks{" + node + "} 30"));
  CHECK(HasLine(text, "kvmd_mesh_events_blocks{" + node + "} 16"));
  CHECK(HasLine(text, "kvmd_mesh_events_untold_blocks{" + node + ",reason=\"unreachable\"} 3"));
  CHECK(HasLine(text, "kvmd_mesh_events_told_blocks_total{" + node + ",change=\"removed\"} 4"));
  CHECK(HasLine(text, "kvmd_mesh_events_replays_total{" + node + ",kind=\"snapshot\"} 1"));
  MetricPage plain;
  kvmmesh::LocalMessage without = FullMesh();
  without.mutable_status()->clear_disk();
  without.mutable_status()->clear_events();
  AddMesh(plain, "/run/a.sock", without);
  CHECK(plain.Text().find("kvmd_mesh_disk") == std::string::npos);
  CHECK(plain.Text().find("kvmd_mesh_events") == std::string::npos);
}

TEST_CASE("Metrics: what is missing in a status is left out, not 0", "[unit]") {
  const std::string text = TextOf({});
  CHECK(HasLine(text, "kvmd_up 1"));
  CHECK(text.find("kvmd_host_cache") == text.npos);
  CHECK(text.find("domain=") == text.npos);
}

TEST_CASE("Metrics: without kvmd there is kvmd_up 0, and no old figure", "[unit]") {
  const std::string text = MetricsWithoutKvmd().Text();
  CHECK(HasLine(text, "kvmd_up 0"));
  CHECK(LinesThatBegin(text, "kvmd_") == 1);
}

TEST_CASE("Metrics: a model's name can't break out of its label", "[unit]") {
  kvmwire::StatusReply status = FullStatus();
  *status.mutable_domains(0)->mutable_memory(0) = Group("a\"} 1\nkvmd_up 0\\", std::string(32, '\xab'));
  const std::string text = TextOf(status);
  INFO(text);
  CHECK_FALSE(HasLine(text, "kvmd_up 0"));
  CHECK(text.find("model=\"a\\\"} 1?kvmd_up 0\\\\\"") != text.npos);
}

TEST_CASE("Metrics: two models that print alike are one series, and their values are added", "[unit]") {
  kvmwire::StatusReply status = FullStatus();
  kvmwire::DomainStatus& domain = *status.mutable_domains(0);
  *domain.mutable_memory(0) = Group("a\x01", std::string(32, '\xab'));
  *domain.add_memory() = Group("a\x02", std::string(32, '\xab'));
  const std::string text = TextOf(status);
  CHECK(LinesThatBegin(text, "kvmd_pool_blocks{") == 1);
  CHECK(text.find("owner=\"worker\"} 200\n") != text.npos);
}

TEST_CASE("Metrics: counters of clients that contradict each other give no negative value", "[unit]") {
  kvmwire::StatusReply status = FullStatus();
  status.mutable_domains(0)->mutable_client_totals()->set_keys_looked_up(1);
  CHECK(HasLine(TextOf(status), "kvmd_lookup_keys_total{domain=\"uid-1000\",result=\"missed\"} 0"));
}

TEST_CASE("Metrics: a histogram's buckets add up to its count, with the limits in seconds", "[unit]") {
  const std::string text = TextOf(FullStatus());
  INFO(text);
  CHECK(HasLine(text, "# TYPE kvmd_lookup_duration_seconds histogram"));
  const std::string bucket = "kvmd_lookup_duration_seconds_bucket{domain=\"uid-1000\",le=";
  CHECK(text.find(bucket + "\"1e-06\"} 0\n") != text.npos);
  CHECK(text.find(bucket + "\"2e-06\"} 5\n") != text.npos);
  CHECK(text.find(bucket + "\"8e-06\"} 7\n") != text.npos);
  CHECK(text.find(bucket + "\"+Inf\"} 7\n") != text.npos);
  CHECK(LinesThatBegin(text, bucket) == kDurationBuckets);
  CHECK(text.find("kvmd_lookup_duration_seconds_count{domain=\"uid-1000\"} 7\n") != text.npos);
  CHECK(text.find("kvmd_lookup_duration_seconds_sum{domain=\"uid-1000\"} 2.4") != text.npos);
}
