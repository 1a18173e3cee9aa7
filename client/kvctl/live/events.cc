// kvctl events.
#include <algorithm>
#include <array>
#include <chrono>
#include <ctime>
#include <iostream>
#include <vector>

#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/status_history.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/live/live.h"
#include "client/kvctl/live/status_feed.h"
#include "client/kvctl/process/interrupt.h"

namespace kvm::ctl {
namespace {

using Time = StatusHistory::Time;

Time AtMs(std::uint64_t unix_ms) { return Time(std::chrono::duration_cast<Time::duration>(std::chrono::milliseconds(unix_ms))); }

// What a status tells of the time before it, the oldest first.
std::vector<Event> EventsBefore(const kvmwire::StatusReply& status) {
  std::vector<Event> events{{AtMs(status.started_ms()), "kvmd " + Printable(status.server_version()) + " has started"}};
  for (const kvmwire::ClientStatus& client : status.client_list()) {
    if (client.role() == kvmwire::WORKER) events.push_back({AtMs(client.connected_ms()), "worker " + NameOfWorker(client) + " has joined"});
  }
  std::stable_sort(events.begin(), events.end(), [](const Event& a, const Event& b) { return a.at < b.at; });
  return events;
}

void Print(const Event& event, bool json) {
  if (json) {
    const auto time_ms = std::chrono::duration_cast<std::chrono::milliseconds>(event.at.time_since_epoch()).count();
    std::cout << HarmlessJson(boost::json::serialize(boost::json::object{{"time_ms", time_ms}, {"event", event.text}})) << std::endl;
    return;
  }
  const std::time_t seconds = std::chrono::system_clock::to_time_t(event.at);
  std::tm local{};
  ::localtime_r(&seconds, &local);
  std::array<char, 32> text{};
  std::cout << std::string(text.data(), std::strftime(text.data(), text.size(), "%F %T", &local)) << "  " << event.text << std::endl;
}

}  // namespace

int RunEvents(const CommonOptions& common, const LiveOptions& options) {
  StatusFeed feed(common, options.interval_s);
  if (Status begun = feed.Begin(); !begun) return Fail(begun.error());
  for (const Event& event : EventsBefore(feed.status())) Print(event, common.json);
  if (!options.follow) return kHealthy;
  CatchInterrupts();
  StatusHistory history;
  history.Add(feed.status(), std::chrono::system_clock::now());
  for (std::uint64_t look = 0; (options.count == 0 || look < options.count) && std::cout.good() && feed.Wait(); ++look) {
    const std::uint64_t before = history.events_said();
    const Result<Activity> activity = feed.Next();
    const Time now = std::chrono::system_clock::now();
    if (activity) {
      history.Add(feed.status(), now);
    } else {
      history.NoteAway(Printable(activity.error().ToString()), now);
    }
    const std::size_t said = std::min<std::size_t>(history.events_said() - before, history.events().size());
    for (std::size_t i = said; i-- > 0;) Print(history.events()[i], common.json);
  }
  return Interrupted() ? kInterrupted : kHealthy;
}

}  // namespace kvm::ctl
