// What a restart of kvmd would cost now, and whom.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// Something that the next kvmd would not have.
struct RestartLoss {
  std::string kind{};              // "lease", "host_cache", "dead_worker": stable, for programs
  std::string holder{};            // a client's, a domain's or a region's name; safe to print
  std::uint32_t pid = 0, uid = 0;  // 0: none
  std::uint64_t blocks = 0, bytes = 0;
  std::string text{};  // what it means to the holder
};

struct RestartOutlook {
  bool keeps_state = false;  // the service manager has copies
  std::uint64_t workers = 0, imports_under_way = 0, published_blocks = 0;
  std::vector<RestartLoss> losses{};
};

// `status`: with clients, leases and orphans.
RestartOutlook OutlookOf(const kvmwire::StatusReply& status);

}  // namespace kvm::ctl
