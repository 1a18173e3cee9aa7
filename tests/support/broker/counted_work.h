// How much work kvmd does in one of its steps (daemon/system/work_meter.h).
#pragma once

#include <algorithm>

#include "daemon/system/work_meter.h"
#include "tests/support/broker/broker_node.h"

namespace kvm::test {

// A slice, what had begun when it was used up, and the answer.
inline constexpr daemon::WorkUnits kMostOfStep = daemon::kSliceUnits + daemon::kSliceUnits / 2;

template <class Step>
daemon::WorkUnits Cost(Step&& step) {
  const daemon::WorkUnits before = daemon::WorkMeter::spent();
  step();
  return daemon::WorkMeter::spent() - before;
}

// The most work of one of kvmd's steps until nothing is left to do, and how many there were.
struct Steps {
  daemon::WorkUnits worst = 0;
  int count = 0;
};
inline Steps WorkStepwise(Node& node) {
  Steps steps;
  for (bool more = true; more; ++steps.count) steps.worst = std::max(steps.worst, Cost([&] { more = node.broker.Work(); }));
  return steps;
}

}  // namespace kvm::test
