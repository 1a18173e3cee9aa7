// RegionHost: the parts of its client that a region uses. A region may outlive its client, so it
// has a weak reference, which it locks for the duration of a call.
#pragma once

#include <chrono>

#include "client/connection/link.h"
#include "client/offload/offloader.h"
#include "client/region/publish_window.h"
#include "client/stats/atomic_stats.h"
#include "kvclient/region.h"

namespace kvm {

class RegionHost {
 public:
  RegionHost(const RegionHost&) = delete;
  RegionHost& operator=(const RegionHost&) = delete;

  // See Region::Unregister.
  [[nodiscard]] virtual Status Unregister(Region::Impl& region, Deadline deadline) = 0;

  Link& link;
  PublishWindow& window;
  Offloader& offloader;
  AtomicStats& stats;
  const std::chrono::milliseconds timeout;  // ClientOptions::timeout

 protected:
  RegionHost(Link& its_link, PublishWindow& its_window, Offloader& its_offloader, AtomicStats& its_stats,
             std::chrono::milliseconds its_timeout)
      : link(its_link), window(its_window), offloader(its_offloader), stats(its_stats), timeout(its_timeout) {}
  ~RegionHost() = default;
};

}  // namespace kvm
