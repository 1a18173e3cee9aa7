// Check of kvctl doctor: why lookups end before their last key, and what to do about the most
// frequent reason.
#pragma once

#include <vector>

#include "client/kvctl/doctor/doctor_checks.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// One line for each domain whose clients have looked something up and missed. It warns where most
// misses have a reason that can be mended.
std::vector<Check> CheckMisses(const kvmwire::StatusReply& status);

}  // namespace kvm::ctl
