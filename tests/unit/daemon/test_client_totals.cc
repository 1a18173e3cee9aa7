// What a domain's clients have done, added up over clients, connections and reports.
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "daemon/broker/clients/client_totals.h"
#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/data/wire_schema.h"

namespace kvm::test {
namespace {

kvmwire::ClientMessage Report(std::uint64_t finds, std::uint64_t reconnects = 0) {
  kvmwire::ClientMessage message;
  message.mutable_stats_report()->set_finds(finds);
  message.mutable_stats_report()->set_reconnects(reconnects);
  return message;
}

kvmwire::DeviceTraffic& AddPair(kvmwire::StatsReport& report, char from, std::uint64_t count) {
  kvmwire::DeviceTraffic& pair = *report.add_traffic();
  pair.set_from_device(std::string(16, from));
  pair.set_blocks(count);
  pair.set_bytes(count);
  return pair;
}

}  // namespace

TEST_CASE("Client totals: every counter of a report is added up, and nothing else", "[unit]") {
  std::string bytes;
  std::set<std::string> counters;
  const auto messages = ReadWireMessages();
  for (const WireField& field : messages.at("StatsReport")) {
    if (field.type != "uint64" || field.name == "reconnects") continue;
    counters.insert(field.name);
    AppendVarint(bytes, static_cast<std::uint64_t>(field.number) << 3);
    AppendVarint(bytes, 1000 + static_cast<std::uint64_t>(field.number));
  }
  REQUIRE(counters.size() > 10);
  kvmwire::StatsReport report, totals;
  REQUIRE(report.ParseFromString(bytes));
  const std::string counted = report.SerializeAsString();
  report.set_unmapped_regions(3);
  report.set_unmapped_reason("no GPU");
  daemon::AddReport(totals, nullptr, report);
  CHECK(totals.SerializeAsString() == counted);
}

TEST_CASE("Client totals: what has been counted is not counted again, over reports and reconnections", "[unit]") {
  Node node;
  FakeConnection connection, again;
  const ClientId client = node.Join(connection);
  node.Handle(client, Report(10));
  node.Handle(client, Report(15));
  CHECK(node.Domain().client_totals().finds() == 15);
  node.broker.Leave(client, false);
  CHECK(node.Domain().client_totals().finds() == 15);
  const ClientId returned = node.Join(again);
  node.Handle(returned, Report(16, 1));
  node.Handle(returned, Report(20, 1));
  CHECK(node.Domain().client_totals().finds() == 19);
  CHECK(node.Domain().client_totals().reconnects() == 1);
}

TEST_CASE("Client totals: a domain's clients are added up, and another domain's are not", "[unit]") {
  Node node;
  FakeConnection first, second, other;
  node.Handle(node.Join(first), Report(1));
  node.Handle(node.Join(second), Report(2));
  node.Handle(node.Join(other, kDeadPid, 1001), Report(4));
  CHECK(node.Domain(1000).client_totals().finds() == 3);
  CHECK(node.Domain(1001).client_totals().finds() == 4);
}

TEST_CASE("Client totals: each model has those of the clients that have declared it alone", "[unit]") {
  Node node;
  FakeConnection first, second, other, both, monitor;
  const auto declare = [&](ClientId client, FakeConnection& connection, const std::string& name) {
    ModelSpec spec = LlamaSpec();
    spec.model_id = name;
    kvmwire::ClientMessage message;
    message.mutable_declare_model()->set_spec(spec.Canonical());
    node.Handle(client, message);
    connection.Take(Body::kDeclareModelReply);
  };
  const ClientId leaves = node.Join(first);
  node.Handle(leaves, Report(1));
  node.Handle(node.Join(second), Report(2));
  const ClientId mixed = node.Join(both);
  node.Handle(mixed, Report(4));
  declare(mixed, both, "org/other");
  node.Handle(mixed, Report(4 + 8));  // of which model, is not known
  declare(mixed, both, "org/other");  // again, as after a reconnection
  const ClientId watcher = node.Join(monitor, 1, 1000, kvmwire::OBSERVER);
  const auto totals = [&](bool asked = true) {
    kvmwire::ClientMessage query;
    query.mutable_status_query()->set_models(asked);
    node.Handle(watcher, query);
    return monitor.Take(Body::kStatusReply).message.status_reply().domains(0);
  };
  CHECK(totals(false).model_totals().empty());
  kvmwire::DomainStatus domain = totals();
  CHECK(domain.client_totals().finds() == 1 + 2 + 4 + 8);
  REQUIRE(domain.model_totals_size() == 2);
  CHECK(domain.model_totals(0).model_id() == LlamaSpec().model_id);
  const Fingerprint fingerprint = LlamaSpec().ComputeFingerprint();
  CHECK(domain.model_totals(0).fingerprint() == std::string(fingerprint.bytes.begin(), fingerprint.bytes.end()));
  CHECK(domain.model_totals(0).counters().finds() == 1 + 2 + 4);
  CHECK(domain.model_totals(1).model_id() == "org/other");
  CHECK(domain.model_totals(1).counters().finds() == 0);

  node.broker.Leave(leaves, false);
  CHECK(totals().model_totals(0).counters().finds() == 1 + 2 + 4);
  node.broker.Leave(mixed, false);
  domain = totals();
  REQUIRE(domain.model_totals_size() == 1);
  CHECK(domain.model_totals(0).model_id() == LlamaSpec().model_id);
}

TEST_CASE("Client totals: durations are added up bucket by bucket, and not again over reports", "[unit]") {
  const auto report = [](std::vector<std::uint64_t> counts, std::uint64_t sum_ns) {
    kvmwire::ClientMessage message;
    kvmwire::Durations& times = *message.mutable_stats_report()->mutable_lookup_times();
    for (const std::uint64_t count : counts) times.add_counts(count);
    times.set_sum_ns(sum_ns);
    return message;
  };
  Node node;
  FakeConnection first, second;
  const ClientId client = node.Join(first);
  node.Handle(client, report({1, 0, 2}, 100));
  node.Handle(client, report({3, 1, 2}, 250));
  node.Handle(node.Join(second), report({10}, 7));
  const kvmwire::Durations times = node.Domain().client_totals().lookup_times();
  REQUIRE(times.counts_size() == 3);
  CHECK(times.counts(0) == 13);
  CHECK(times.counts(1) == 1);
  CHECK(times.counts(2) == 2);
  CHECK(times.sum_ns() == 257);
}

TEST_CASE("Client totals: a report with more durations than there are buckets ends the connection", "[unit]") {
  Node node;
  FakeConnection connection;
  kvmwire::ClientMessage message;
  for (std::size_t i = 0; i <= kDurationBuckets; ++i) message.mutable_stats_report()->mutable_import_times()->add_counts(1);
  const Status refused = node.broker.Handle(node.Join(connection), message, {});
  REQUIRE_FALSE(refused);
  CHECK(refused.error().code == Errc::kProtocol);
}

TEST_CASE("Client totals: counters that go backwards or overflow take nothing away", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  node.Handle(client, Report(10));
  node.Handle(client, Report(3));
  CHECK(node.Domain().client_totals().finds() == 10);
  constexpr std::uint64_t kMost = std::numeric_limits<std::uint64_t>::max();
  node.Handle(client, Report(kMost));
  CHECK(node.Domain().client_totals().finds() == kMost);
}

TEST_CASE("Client totals: the last misses are shown to the operator who asks for them, and nowhere else", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  kvmwire::ClientMessage report = Report(3);
  kvmwire::RecentMiss& miss = *report.mutable_stats_report()->add_recent_misses();
  miss.set_reason(kvmwire::MISS_STALE);
  miss.set_key(std::string(16, 'k'));
  node.Handle(client, report);
  const auto misses = [&](bool asked) {
    kvmwire::ClientMessage query;
    query.mutable_status_query()->set_clients(true);
    query.mutable_status_query()->set_details(asked);
    node.Handle(client, query);
    return connection.Take(Body::kStatusReply).message.status_reply().client_list(0).stats().recent_misses_size();
  };
  CHECK(misses(false) == 0);
  CHECK(misses(true) == 1);
  CHECK(node.Domain().client_totals().recent_misses_size() == 0);
}

TEST_CASE("Client totals: more misses than a report may have, or half a key, break the protocol", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  kvmwire::ClientMessage report = Report(3);
  for (std::size_t i = 0; i < kMaxRecentMisses; ++i) report.mutable_stats_report()->add_recent_misses();
  node.Handle(client, report);
  kvmwire::ClientMessage half = report;
  half.mutable_stats_report()->mutable_recent_misses(0)->set_key("half");
  CHECK_FALSE(node.broker.Handle(client, half, {}));
  report.mutable_stats_report()->add_recent_misses();
  CHECK_FALSE(node.broker.Handle(client, report, {}));
}

TEST_CASE("Client totals: traffic is added up pair by pair, and not again over reports", "[unit]") {
  kvmwire::StatsReport first, second, totals;
  AddPair(first, 'a', 10);
  AddPair(second, 'b', 5);
  AddPair(second, 'a', 12);
  daemon::AddReport(totals, nullptr, first);
  daemon::AddReport(totals, &first, second);
  daemon::AddReport(totals, nullptr, first);  // of another client
  REQUIRE(totals.traffic_size() == 2);
  CHECK(totals.traffic(0).from_device() == std::string(16, 'a'));
  CHECK(totals.traffic(0).bytes() == 22);
  CHECK(totals.traffic(0).blocks() == 22);
  CHECK(totals.traffic(1).bytes() == 5);
}

TEST_CASE("Client totals: however many devices clients name, a domain's sums have so many pairs", "[unit]") {
  kvmwire::StatsReport totals;
  for (std::size_t client = 0; client < 5; ++client) {
    kvmwire::StatsReport report;
    for (std::size_t i = 0; i < kMaxTrafficPairs; ++i)
      AddPair(report, static_cast<char>(i), 1).set_to_device(std::string(16, char(client)));
    daemon::AddReport(totals, nullptr, report);
  }
  CHECK(totals.traffic_size() == static_cast<int>(kMaxDomainTrafficPairs));
}

TEST_CASE("Client totals: more pairs than a report may have, or half a device, break the protocol", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  kvmwire::ClientMessage report = Report(3);
  for (std::size_t i = 0; i < kMaxTrafficPairs; ++i) AddPair(*report.mutable_stats_report(), static_cast<char>(i), 1);
  node.Handle(client, report);
  kvmwire::ClientMessage half = report;
  half.mutable_stats_report()->mutable_traffic(0)->set_to_device("half");
  CHECK_FALSE(node.broker.Handle(client, half, {}));
  AddPair(*report.mutable_stats_report(), 'x', 1);
  CHECK_FALSE(node.broker.Handle(client, report, {}));
}

}  // namespace kvm::test
