// What a client counts: one table for libkvclient, kvmd and kvctl.
#include <set>
#include <string>

#include "client/stats/atomic_stats.h"
#include "tests/catch.h"
#include "tests/support/data/wire_schema.h"

namespace {

using namespace kvm;

// What StatsReport has besides counters.
const std::set<std::string> kOtherFields{"unmapped_regions", "unmapped_reason", "lookup_times", "import_times", "recent_misses", "traffic"};

std::set<std::string> Reported() {
  std::set<std::string> names;
#define ADD(name, meaning) names.insert(#name);
#define LEAVE(name, meaning)
  KVCLIENT_STATS(ADD, LEAVE, LEAVE)
#undef ADD
#undef LEAVE
  return names;
}

}  // namespace

TEST_CASE("Client stats: what kvmd is told has exactly the reported counters of the table", "[unit]") {
  std::set<std::string> fields;
  const auto messages = test::ReadWireMessages();
  for (const test::WireField& field : messages.at("StatsReport")) fields.insert(field.name);
  std::set<std::string> expected = Reported();
  expected.insert(kOtherFields.begin(), kOtherFields.end());
  CHECK(fields == expected);
}

TEST_CASE("Client stats: each counter arrives under its own name", "[unit]") {
  AtomicStats counted;
  std::uint64_t next = 0;
#define COUNT(name, meaning) counted.name = ++next;
#define LEAVE(name, meaning)
  KVCLIENT_STATS(COUNT, COUNT, LEAVE)
  const ClientStats stats = Load(counted);
  const kvmwire::StatsReport report = ReportOf(stats);
  next = 0;
#define SEEN(name, meaning) CHECK(stats.name == ++next);
  KVCLIENT_STATS(SEEN, SEEN, LEAVE)
#define TOLD(name, meaning) CHECK(report.name() == stats.name);
  KVCLIENT_STATS(TOLD, LEAVE, LEAVE)
#undef COUNT
#undef LEAVE
#undef SEEN
#undef TOLD
}

TEST_CASE("Client stats: traffic is summed up by source and destination, and pairs beyond the limit are left out", "[unit]") {
  const auto device = [](std::size_t number) {
    DeviceUuid uuid{};
    uuid[0] = static_cast<std::uint8_t>(number + 1);
    return uuid;
  };
  Traffic traffic;
  traffic.Add(device(0), kHostMemory, 1, 10);
  for (std::size_t i = 0; i < 2 * kMaxTrafficPairs; ++i) traffic.Add(device(i), kHostMemory, 2, 20);
  kvmwire::StatsReport report;
  traffic.Report(report);
  REQUIRE(report.traffic_size() == static_cast<int>(kMaxTrafficPairs));
  CHECK(report.traffic(0).from_device() == std::string(1, '\1') + std::string(15, '\0'));
  CHECK(report.traffic(0).to_device().empty());
  CHECK(report.traffic(0).blocks() == 3);
  CHECK(report.traffic(0).bytes() == 30);
  CHECK(report.traffic(1).bytes() == 20);
}

TEST_CASE("Durations: a bucket holds what is above half of its limit, up to its limit", "[unit]") {
  using std::chrono::nanoseconds, std::chrono::microseconds, std::chrono::hours;
  const auto bucket = [](nanoseconds took) { return AtomicDurations::BucketOf(took); };
  CHECK(bucket(nanoseconds(-1)) == 0);
  CHECK(bucket(nanoseconds(1000)) == 0);
  CHECK(bucket(nanoseconds(1001)) == 1);
  CHECK(bucket(microseconds(2)) == 1);
  CHECK(bucket(nanoseconds(2001)) == 2);
  CHECK(bucket(microseconds(1 << 22)) == 22);
  CHECK(bucket(microseconds((1 << 22) + 1)) == kDurationBuckets - 1);
  CHECK(bucket(hours(9)) == kDurationBuckets - 1);
  AtomicStats stats;
  stats.lookup_times.Add(microseconds(3));
  stats.lookup_times.Add(microseconds(4));
  kvmwire::StatsReport report;
  ReportTimes(stats, report);
  REQUIRE(report.lookup_times().counts_size() == static_cast<int>(kDurationBuckets));
  CHECK(report.lookup_times().counts(2) == 2);
  CHECK(report.lookup_times().sum_ns() == 7000);
}
