// Where a region stands with kvmd, and what the offloader's thread does with one: what may follow
// what.
#include <algorithm>
#include <array>
#include <vector>

#include "client/offload/offload_phase.h"
#include "client/region/region_state.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

constexpr std::array kStates{RegionState::kOffline,   RegionState::kRegistering, RegionState::kRegistered,
                             RegionState::kAbandoned, RegionState::kClosing,     RegionState::kClosed};
constexpr std::array kPhases{OffloadPhase::kIdle, OffloadPhase::kOffering, OffloadPhase::kCopying, OffloadPhase::kLastCopy,
                             OffloadPhase::kLeaving};

template <class State, std::size_t kCount>
std::vector<State> After(const std::array<State, kCount>& all, State from) {
  std::vector<State> out;
  std::copy_if(all.begin(), all.end(), std::back_inserter(out), [&](State to) { return MayFollow(from, to); });
  return out;
}

template <class State, std::size_t kCount>
std::vector<State> Before(const std::array<State, kCount>& all, State to) {
  std::vector<State> out;
  std::copy_if(all.begin(), all.end(), std::back_inserter(out), [&](State from) { return MayFollow(from, to); });
  return out;
}

// Whether `to` can be reached from `from` in some steps.
template <class State, std::size_t kCount>
bool Leads(const std::array<State, kCount>& all, State from, State to) {
  std::vector<State> reached{from};
  for (std::size_t i = 0; i < reached.size(); ++i) {
    for (const State next : After(all, reached[i])) {
      if (std::find(reached.begin(), reached.end(), next) == reached.end()) reached.push_back(next);
    }
  }
  return std::find(reached.begin(), reached.end(), to) != reached.end();
}

}  // namespace

TEST_CASE("Region state: a closed region stays closed", "[unit]") {
  CHECK(After(kStates, RegionState::kClosed).empty());
  for (const RegionState from : kStates) {
    if (IsOpen(from)) continue;
    for (const RegionState to : After(kStates, from)) CHECK_FALSE(IsOpen(to));
  }
}

TEST_CASE("Region state: every region can be closed", "[unit]") {
  for (const RegionState from : kStates) CHECK(Leads(kStates, from, RegionState::kClosed));
}

TEST_CASE("Region state: a region's row is removed by kvmd before the region counts as closed", "[unit]") {
  CHECK_FALSE(MayFollow(RegionState::kRegistered, RegionState::kClosed));
  CHECK(After(kStates, RegionState::kRegistered) == std::vector{RegionState::kOffline, RegionState::kClosing});
}

TEST_CASE("Region state: only the answer to a request makes a region registered", "[unit]") {
  CHECK(Before(kStates, RegionState::kRegistered) == std::vector{RegionState::kRegistering});
  CHECK(Before(kStates, RegionState::kRegistering) == std::vector{RegionState::kOffline});
}

TEST_CASE("Region state: a region that is closed during a request waits for the answer", "[unit]") {
  CHECK(Before(kStates, RegionState::kAbandoned) == std::vector{RegionState::kRegistering});
  CHECK(After(kStates, RegionState::kAbandoned) == std::vector{RegionState::kClosing, RegionState::kClosed});
}

TEST_CASE("Offload phase: a copy that has begun ends before its region is closed", "[unit]") {
  for (const OffloadPhase copying : {OffloadPhase::kCopying, OffloadPhase::kLastCopy}) CHECK_FALSE(MayFollow(copying, OffloadPhase::kIdle));
  CHECK_FALSE(MayFollow(OffloadPhase::kCopying, OffloadPhase::kLeaving));
}

TEST_CASE("Offload phase: a region that is being closed is not read again", "[unit]") {
  CHECK(After(kPhases, OffloadPhase::kLeaving) == std::vector{OffloadPhase::kIdle});
  CHECK(After(kPhases, OffloadPhase::kLastCopy) == std::vector{OffloadPhase::kLeaving});
}

TEST_CASE("Offload phase: the thread returns to idle from every phase", "[unit]") {
  for (const OffloadPhase from : kPhases) CHECK(Leads(kPhases, from, OffloadPhase::kIdle));
}
