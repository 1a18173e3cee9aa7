// The page of kvctl top, as text.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "client/kvctl/live/activity.h"
#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

inline constexpr std::size_t kPageColumns = 80;

// Lines of at most kPageColumns characters; at most `max_lines` of them (0: all), the last of which
// says how many workers are left out.
std::vector<std::string> TopPage(const kvmwire::StatusReply& status, const Activity& activity, const std::string& time,
                                 std::size_t max_lines);

// At most `columns` characters of UTF-8; what is cut is marked.
std::string Fit(const std::string& text, std::size_t columns);

}  // namespace kvm::ctl
