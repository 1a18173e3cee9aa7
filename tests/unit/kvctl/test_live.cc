// kvctl top and kvctl stat: rates between two answers of kvmd, and the page that shows them.
#include <algorithm>
#include <string>

#include "client/kvctl/live/activity.h"
#include "client/kvctl/live/top_page.h"
#include "tests/catch.h"

namespace {

using namespace kvm::ctl;

kvmwire::ClientStatus& AddWorker(kvmwire::StatusReply& status, std::uint64_t id, const std::string& name, std::uint64_t bytes) {
  kvmwire::ClientStatus& client = *status.add_client_list();
  client.set_client_id(id);
  client.set_name(name);
  client.set_pid(static_cast<std::uint32_t>(1000 + id));
  client.set_domain("uid-1000");
  client.mutable_stats()->set_bytes_imported(bytes);
  return client;
}

// Of the time when `lookups` lookups had been made.
kvmwire::StatusReply StatusAt(std::uint64_t lookups, std::uint64_t epoch = 7) {
  kvmwire::StatusReply status;
  status.set_started_ms(1);
  kvmwire::DomainStatus& domain = *status.add_domains();
  domain.set_name("uid-1000");
  domain.set_epoch(epoch);
  domain.mutable_client_totals()->set_finds(lookups);
  domain.mutable_counters()->set_evicted(2 * lookups);
  return status;
}

std::size_t Characters(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

}  // namespace

TEST_CASE("Activity: rates are what was added between two answers, by their distance", "[unit]") {
  const Activity activity = ActivityBetween(StatusAt(100), StatusAt(150), 2);
  CHECK(activity.rates.lookups == 25);
  CHECK(activity.rates.evicted_blocks == 50);
}

TEST_CASE("Activity: a registry that begins anew counts from 0", "[unit]") {
  CHECK(ActivityBetween(StatusAt(100), StatusAt(30, 8), 1).rates.lookups == 30);
  CHECK(ActivityBetween(StatusAt(100), StatusAt(30), 1).rates.lookups == 30);
  CHECK(ActivityBetween({}, StatusAt(30), 1).rates.lookups == 30);
}

TEST_CASE("Activity: what a worker did before it was seen first is not its rate", "[unit]") {
  kvmwire::StatusReply before = StatusAt(0), now = StatusAt(0);
  AddWorker(before, 1, "known", 1000);
  AddWorker(now, 1, "known", 1500);
  AddWorker(now, 2, "new", 1'000'000);
  const Activity activity = ActivityBetween(before, now, 1);
  REQUIRE(activity.workers.size() == 2);
  CHECK(activity.workers[0].name == "known");  // the busiest first
  CHECK(activity.workers[0].rates.imported_bytes == 500);
  CHECK(activity.workers[1].rates.imported_bytes == 0);
  now.set_started_ms(2);  // another kvmd gives the same ids anew
  CHECK(ActivityBetween(before, now, 1).workers[0].rates.imported_bytes == 0);
}

TEST_CASE("Activity: observers are no workers", "[unit]") {
  kvmwire::StatusReply now = StatusAt(0);
  AddWorker(now, 1, "kvctl", 0).set_role(kvmwire::OBSERVER);
  CHECK(ActivityBetween(now, now, 1).workers.empty());
}

TEST_CASE("Top: no line is wider than 80 columns, whatever a worker is called and however much it does", "[unit]") {
  kvmwire::StatusReply before = StatusAt(0), now = StatusAt(10'000'000'000);
  now.set_server_version("0.2.0");
  for (std::uint64_t id = 1; id <= 3; ++id) {
    AddWorker(before, id, "a worker with quite a long name ü" + std::string(40, 'x'), 0).set_pid(4'000'000'000);
    kvmwire::ClientStatus& worker = AddWorker(now, id, "ünïcödé wörker wïth ä löng nämé", 9'000'000'000'000'000);
    worker.set_domain("gid-4294967295");
    worker.set_entries(999'999'999);
    worker.mutable_stats()->set_keys_looked_up(9'000'000'000'000);
    worker.mutable_stats()->set_blocks_failed(9'000'000'000'000);
  }
  const std::vector<std::string> lines = TopPage(now, ActivityBetween(before, now, 0.1), "12:34:56", 0);
  REQUIRE(lines.size() == 10);
  for (const std::string& line : lines) {
    INFO(line);
    CHECK(Characters(line) <= kPageColumns);
    CHECK(line.find('\n') == line.npos);
  }
}

TEST_CASE("Top: workers that don't fit the terminal are counted in its last line", "[unit]") {
  kvmwire::StatusReply now = StatusAt(0);
  for (std::uint64_t id = 1; id <= 50; ++id) AddWorker(now, id, "worker", 0);
  const std::vector<std::string> lines = TopPage(now, ActivityBetween(now, now, 1), "12:34:56", 24);
  REQUIRE(lines.size() == 24);
  CHECK(lines.back() == "… 34 more");  // of 50: 7 lines stand above, 16 workers are shown
  CHECK(TopPage(now, ActivityBetween(now, now, 1), "12:34:56", 0).size() == 57);
}

TEST_CASE("Top: a text is cut between characters, and the cut is marked", "[unit]") {
  CHECK(Fit("abc", 3) == "abc");
  CHECK(Fit("abcd", 3) == "ab~");
  CHECK(Fit("üüüü", 3) == "üü~");
  CHECK(Fit("", 3).empty());
}
