// What a client counts. Every part of libkvclient adds to it; ClientStats is what callers see,
// StatsReport what kvmd does.
#pragma once

#include <atomic>
#include <cstdint>

#include "kvclient/client.h"
#include "proto/wire/wire.pb.h"

namespace kvm {

struct AtomicStats {
  std::atomic<std::uint64_t> finds{0}, keys_looked_up{0}, keys_matched{0}, imports{0}, blocks_imported{0}, blocks_failed{0},
      bytes_imported{0}, blocks_published{0}, publishes_deferred{0}, publishes_refused{0}, connections{0}, blocks_offloaded{0},
      offloads_dropped{0}, offloads_refused{0}, blocks_from_host_cache{0};
};

// All counters except mapped_regions, which is read from PeerTable.
ClientStats Load(const AtomicStats& stats) noexcept;

kvmwire::StatsReport ReportOf(const ClientStats& stats);

}  // namespace kvm
