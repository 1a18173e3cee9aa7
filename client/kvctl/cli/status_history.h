// StatusHistory: what was seen of kvmd, for the curves and the events of the exporter's page, and
// for kvctl events.
//
// The exporter adds each status that it gets: those of scrapes and of the page itself. It keeps
// sums, not statuses, so that its size does not depend on kvmd's. Not thread-safe.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <string>

#include "client/kvctl/cli/miss_reasons.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// What happened between two statuses.
struct Interval {
  std::chrono::system_clock::time_point end;
  double seconds = 0;
  std::uint64_t keys_looked_up = 0, keys_found = 0, imported_blocks = 0, imported_bytes = 0, failed_blocks = 0, published_blocks = 0;
  std::array<std::uint64_t, kMissReasons.size()> misses{};  // lookups, by reason
};

struct Event {
  std::chrono::system_clock::time_point at;
  std::string text;  // safe to print, not to put into HTML
};

// A worker by name, process and domain; safe to print.
std::string NameOfWorker(const kvmwire::ClientStatus& client);

class StatusHistory {
 public:
  using Time = std::chrono::system_clock::time_point;

  static constexpr std::size_t kMostIntervals = 240, kMostEvents = 40;
  // Statuses that come faster than this are one interval.
  static constexpr std::chrono::milliseconds kShortest{1000};

  void Add(const kvmwire::StatusReply& status, Time now);
  // kvmd did not answer.
  void NoteAway(const std::string& why, Time now);

  const std::deque<Interval>& intervals() const noexcept { return intervals_; }  // the oldest first
  const std::deque<Event>& events() const noexcept { return events_; }           // the newest first
  // How many there were, also those that events() has no more.
  std::uint64_t events_said() const noexcept { return events_said_; }

 private:
  struct Sums {
    std::uint64_t keys_looked_up = 0, keys_found = 0, imported_blocks = 0, imported_bytes = 0, failed_blocks = 0, published_blocks = 0;
    std::array<std::uint64_t, kMissReasons.size()> misses{};
    std::uint64_t started_ms = 0, evicted = 0, refused = 0, orphans = 0, host_cache_bytes = 0;
    std::map<std::uint64_t, std::string> workers;  // by client id
  };

  static Sums SumsOf(const kvmwire::StatusReply& status);
  void NoteEvents(const Sums& now, Time at);
  void Say(std::string text, Time at);

  std::deque<Interval> intervals_;
  std::deque<Event> events_;
  std::uint64_t events_said_ = 0;
  bool seen_ = false, away_ = false;
  Sums last_;   // at the end of the last interval
  Sums told_;   // of the last status, of which events have been made
  Time since_;  // of last_
};

}  // namespace kvm::ctl
