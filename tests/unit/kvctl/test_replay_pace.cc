// When the requests of a paced replay are due.
#include "client/kvctl/replay/replay_pace.h"
#include "tests/catch.h"

namespace {

using namespace kvm::ctl;
using namespace std::chrono_literals;

std::vector<Request> At(const std::vector<std::uint64_t>& times_us) {
  std::vector<Request> requests(times_us.size());
  for (std::size_t i = 0; i < times_us.size(); ++i) requests[i].timestamp_us = times_us[i];
  return requests;
}

}  // namespace

TEST_CASE("Pace: requests are due as far from the first as their timestamps, divided by the speed", "[unit]") {
  const Pace::TimePoint start{5s};
  const std::vector<Request> requests = At({1'700'000'000'000'000, 1'700'000'000'250'000, 1'700'000'060'000'000});
  CHECK(Pace(requests, 1, start).Due(0) == start);
  CHECK(Pace(requests, 1, start).Due(1) == start + 250ms);
  CHECK(Pace(requests, 4, start).Due(2) == start + 15s);
  CHECK(Pace(requests, 0.5, start).Due(1) == start + 500ms);
}

TEST_CASE("Pace: a request stamped before the first is due at the start, and no speed overflows", "[unit]") {
  const Pace::TimePoint start{5s};
  const std::vector<Request> requests = At({1'000'000, 0, 3'000'000'000'000'000});
  CHECK(Pace(requests, 1, start).Due(1) == start);
  CHECK(Pace(requests, 1e-3, start).Due(2) > start + 24h);
}
