// kvctl top, kvctl stat and kvctl events: what kvmd's workers do, second by second.
#pragma once

#include <cstdint>

#include "client/kvctl/cli/common_options.h"

namespace kvm::ctl {

struct LiveOptions {
  double interval_s = 1;
  std::uint64_t count = 0;  // how often, 0: until it is interrupted
  bool follow = false;      // of RunEvents: go on after what is known
};
// A page of the terminal that is drawn anew; plain pages, one after the other, where the output is
// no terminal; with --json what RunStat prints. kvmd may be restarted meanwhile.
int RunTop(const CommonOptions& common, const LiveOptions& options);
// A line for each interval; with --json an object.
int RunStat(const CommonOptions& common, const LiveOptions& options);
// A line for each event, as it is seen: workers that join and leave, kvmd's restarts and absence,
// dead workers' memory, the host cache's size. First those that kvmd's status still tells. With
// --json an object each.
int RunEvents(const CommonOptions& common, const LiveOptions& options);

}  // namespace kvm::ctl
