// What a client counts: one table for libkvclient, kvmd and kvctl.
#include <set>
#include <string>

#include "client/stats/atomic_stats.h"
#include "tests/catch.h"
#include "tests/support/data/wire_schema.h"

namespace {

using namespace kvm;

// What StatsReport has besides counters.
const std::set<std::string> kOtherFields{"unmapped_regions", "unmapped_reason"};

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
