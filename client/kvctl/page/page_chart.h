// The page's curves, as SVG: the share of blocks found over time, and misses by reason.
#pragma once

#include <deque>
#include <string>

#include "client/kvctl/cli/status_history.h"

namespace kvm::ctl {

// Without intervals: a sentence that says so.
std::string HitChart(const std::deque<Interval>& intervals);
std::string MissChart(const std::deque<Interval>& intervals);

}  // namespace kvm::ctl
