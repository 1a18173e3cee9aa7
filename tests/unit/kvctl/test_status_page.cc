// The exporter's page: what it says of a status, what it remembers, and that no client's text gets
// out of its place.
#include <chrono>
#include <string>

#include "client/kvctl/page/status_page.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace kvm::ctl;
using namespace std::chrono_literals;

constexpr StatusHistory::Time kStart{std::chrono::seconds(1'800'000'000)};

kvmwire::StatusReply StatusOf(std::uint64_t keys, std::uint64_t found, std::uint64_t stale = 0) {
  kvmwire::StatusReply status;
  status.set_server_version("0.2.0");
  status.set_started_ms(1'799'990'000'000);
  kvmwire::DomainStatus& domain = *status.add_domains();
  domain.set_name("uid-1000");
  kvmwire::StatsReport& totals = *domain.mutable_client_totals();
  totals.set_keys_looked_up(keys);
  totals.set_keys_matched(found);
  totals.set_misses_stale(stale);
  return status;
}

kvmwire::ClientStatus& AddWorker(kvmwire::StatusReply& status, std::uint64_t id, const std::string& name) {
  kvmwire::ClientStatus& client = *status.add_client_list();
  client.set_client_id(id);
  client.set_name(name);
  client.set_pid(77);
  client.set_domain("uid-1000");
  client.set_role(kvmwire::WORKER);
  return client;
}

std::string Page(const kvmwire::StatusReply& status, const StatusHistory& history = {}) {
  return StatusPage(&status, "", history, kStart, Keys::kShown);
}

bool Has(const std::string& page, const std::string& text) { return page.find(text) != std::string::npos; }

}  // namespace

TEST_CASE("Status page: what clients call themselves can't become part of the page", "[unit]") {
  const std::string evil = "<script>alert(1)</script>\"'&";
  kvmwire::StatusReply status = StatusOf(10, 5);
  status.mutable_host_cache()->set_policy(evil);
  AddWorker(status, 1, evil).mutable_stats()->add_recent_misses();
  kvmwire::DomainStatus& domain = *status.mutable_domains(0);
  domain.set_name(evil);
  domain.add_hot()->set_model_id(evil);
  kvmwire::MemoryGroup& group = *domain.add_memory();
  group.set_model_id(evil);
  group.set_device_uuid(evil);
  StatusHistory history;
  history.Add(StatusOf(1, 1), kStart);
  history.Add(status, kStart + 2s);
  history.NoteAway(evil, kStart + 3s);
  const std::string page = Page(status, history);
  CHECK_FALSE(Has(page, "<script>alert"));
  CHECK(Has(page, "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&amp;"));
  CHECK_FALSE(Has(StatusPage(nullptr, evil, history, kStart, Keys::kShown), "<script>alert"));
}

TEST_CASE("Status page: it has shares, reasons, workers, prefixes, misses, devices and their traffic", "[unit]") {
  kvmwire::StatusReply status = StatusOf(100, 40, 7);
  kvmwire::ClientStatus& worker = AddWorker(status, 1, "engine-3");
  worker.mutable_stats()->set_keys_looked_up(100);
  kvmwire::RecentMiss& miss = *worker.mutable_stats()->add_recent_misses();
  miss.set_reason(kvmwire::MISS_STALE);
  miss.set_key(std::string(16, '\xab'));
  kvmwire::DomainStatus& domain = *status.mutable_domains(0);
  kvmwire::HotPrefix& hot = *domain.add_hot();
  hot.set_model_id("org/model");
  hot.set_uses(31);
  kvmwire::MemoryGroup& group = *domain.add_memory();
  group.set_device_uuid(std::string(16, '\x11'));
  group.set_blocks(4);
  group.set_entries(3);
  kvmwire::DeviceTraffic& pair = *domain.mutable_client_totals()->add_traffic();
  pair.set_from_device(std::string(16, '\x11'));
  pair.set_blocks(5);
  pair.set_bytes(5 << 20);
  const std::string page = Page(status);
  for (const char* text : {"40.0 %", "engine-3", "was rewritten after it was published", "abababababab", "org/model", "75.0 % published",
                           "GPU-11111111-1111-1111-1111-111111111111", "<td>GPU-11111111</td><td>host</td>", "5 MiB"}) {
    INFO(text);
    CHECK(Has(page, text));
  }
}

TEST_CASE("Status page: the newest miss comes first, also within a millisecond", "[unit]") {
  kvmwire::StatusReply status = StatusOf(10, 5);
  kvmwire::StatsReport& stats = *AddWorker(status, 1, "engine").mutable_stats();
  for (const char digit : {'\x11', '\x22', '\x33'}) {
    kvmwire::RecentMiss& miss = *stats.add_recent_misses();
    miss.set_at_ms(digit == '\x33' ? 7001 : 7000);
    miss.set_key(std::string(16, digit));
  }
  const std::string page = Page(status);
  REQUIRE(Has(page, "111111111111"));
  CHECK(page.find("333333333333") < page.find("222222222222"));
  CHECK(page.find("222222222222") < page.find("111111111111"));
}

TEST_CASE("Status page: it has no digit of a key where every user may see it", "[unit]") {
  kvmwire::StatusReply status = StatusOf(10, 5);
  AddWorker(status, 1, "engine").mutable_stats()->add_recent_misses()->set_key(std::string(16, '\xab'));
  status.mutable_domains(0)->add_hot()->set_key(std::string(16, '\xab'));
  CHECK(Has(Page(status), "abab"));
  CHECK_FALSE(Has(StatusPage(&status, "", {}, kStart, Keys::kHidden), "abab"));
}

TEST_CASE("Status page: without kvmd it says why", "[unit]") {
  CHECK(Has(StatusPage(nullptr, "nothing listens", StatusHistory(), kStart, Keys::kShown), "nothing listens"));
}

TEST_CASE("Status page: it fetches nothing from elsewhere, and is small with long lists", "[unit]") {
  kvmwire::StatusReply status = StatusOf(1'000'000, 400'000);
  for (std::uint64_t i = 0; i < 500; ++i) {
    kvmwire::ClientStatus& worker = AddWorker(status, i, "worker-" + std::to_string(i) + std::string(50, 'x'));
    for (int miss = 0; miss < 8; ++miss) worker.mutable_stats()->add_recent_misses()->set_key(std::string(16, 'k'));
    status.mutable_domains(0)->add_hot()->set_key(std::string(16, 'k'));
  }
  StatusHistory history;
  for (std::uint64_t i = 0; i < 500; ++i) history.Add(StatusOf(1000 * i, 700 * i, 5 * i), kStart + std::chrono::seconds(15 * i));
  const std::string page = Page(status, history);
  CHECK(page.size() < 200'000);
  for (const char* text : {"http:", "https:", "src=", "url(", "@import", "<link"}) {
    INFO(text);
    CHECK_FALSE(Has(page, text));
  }
  CHECK(Has(page, "450 more rows are not shown"));
}

TEST_CASE("Status history: an interval has what came since the last, however often it is looked at", "[unit]") {
  StatusHistory history;
  history.Add(StatusOf(100, 50), kStart);
  CHECK(history.intervals().empty());
  history.Add(StatusOf(110, 55), kStart + 400ms);  // the interval goes on
  history.Add(StatusOf(300, 150, 4), kStart + 2s);
  REQUIRE(history.intervals().size() == 1);
  CHECK(history.intervals()[0].keys_looked_up == 200);
  CHECK(history.intervals()[0].keys_found == 100);
  CHECK(history.intervals()[0].misses[kvmwire::MISS_STALE] == 4);
  CHECK(history.intervals()[0].seconds == 2);
  for (int i = 1; i < 1000; ++i) history.Add(StatusOf(300 + i, 150), kStart + 2s + std::chrono::seconds(5 * i));
  CHECK(history.intervals().size() == StatusHistory::kMostIntervals);
}

TEST_CASE("Status history: a restart of kvmd is an event, and no interval", "[unit]") {
  StatusHistory history;
  history.Add(StatusOf(100, 50), kStart);
  kvmwire::StatusReply after = StatusOf(10, 5);
  after.set_started_ms(after.started_ms() + 5000);
  history.Add(after, kStart + 5s);
  CHECK(history.intervals().empty());
  REQUIRE(history.events().size() == 1);
  CHECK(history.events()[0].text == "kvmd was restarted");
}

TEST_CASE("Status history: workers come and go as events, many at once as a few lines", "[unit]") {
  StatusHistory history;
  history.Add(StatusOf(1, 1), kStart);
  kvmwire::StatusReply with = StatusOf(1, 1);
  AddWorker(with, 5, "engine");
  history.Add(with, kStart + 100ms);
  REQUIRE(history.events().size() == 1);
  CHECK(history.events()[0].text == "worker engine (pid 77, uid-1000) has joined");
  history.Add(StatusOf(1, 1), kStart + 200ms);
  CHECK(history.events()[0].text == "worker engine (pid 77, uid-1000) has left");
  for (std::uint64_t i = 0; i < 100; ++i) AddWorker(with, 10 + i, "many");
  history.Add(with, kStart + 3s);
  CHECK(history.events().size() == 9);
  CHECK(history.events()[0].text == "95 more workers have joined");
}

TEST_CASE("Status history: kvmd's absence is one event, however often it is asked, and its return another", "[unit]") {
  StatusHistory history;
  history.Add(StatusOf(1, 1), kStart);
  for (int i = 0; i < 5; ++i) history.NoteAway("no answer", kStart + std::chrono::seconds(i));
  CHECK(history.events().size() == 1);
  history.Add(StatusOf(1, 1), kStart + 9s);
  REQUIRE(history.events().size() == 2);
  CHECK(history.events()[0].text == "kvmd answers again");
}
