// What happened between two answers of kvmd to a status query, as rates.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/wire/wire.pb.h"

namespace kvm::ctl {

// A second.
struct Rates {
  double lookups = 0, keys_looked_up = 0, keys_found = 0;
  double imported_blocks = 0, imported_bytes = 0, failed_blocks = 0, host_cache_blocks = 0;
  double published_blocks = 0, evicted_blocks = 0, refused_blocks = 0;
};

struct ClientActivity {
  std::string name, domain;  // safe to print
  std::uint32_t pid = 0;
  std::uint64_t blocks = 0;  // published, now
  Rates rates;               // without evicted and refused blocks
};

struct Activity {
  std::uint64_t clients = 0, blocks = 0, max_blocks = 0, orphan_bytes = 0, host_cache_bytes = 0, max_host_cache_bytes = 0;
  Rates rates;                          // of all domains that the answers have
  std::vector<ClientActivity> workers;  // the busiest first; observers are left out
};

// `seconds` between the two. A client, a domain or a kvmd that was not there before counts from 0.
Activity ActivityBetween(const kvmwire::StatusReply& before, const kvmwire::StatusReply& now, double seconds);

}  // namespace kvm::ctl
