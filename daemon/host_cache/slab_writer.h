// A client that may write slabs of the host cache, and the slots that it has been granted.
//
// Held by SlabWriters (slab_writers.h), and by each slab that the client may write. It owns nothing
// but its list of grants.
//
// Invariant: a writer exists for as long as its process might write a slab, though the client has
// left; then `process` tells when that ends.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>

#include "daemon/host_cache/slot_table.h"
#include "daemon/registry/domain.h"
#include "proto/shm/generation_table.h"

namespace kvm::daemon {

class Slab;

inline constexpr std::uint32_t kMaxGrantsPerClient = 4096;

// A client that offers blocks.
struct Offerer {
  ClientId client = 0;
  std::uint32_t uid = 0, pid = 0;
  std::uint64_t instance = 0;  // Hello::instance; 0: it has none
};

// A slot that a writer has been granted. Answered for once the slot's state or generation says
// something else.
struct OpenGrant {
  std::chrono::steady_clock::time_point deadline;
  Slab* slab = nullptr;
  policy::Slot slot = 0;  // of the class
  Generation write = 0;
};

struct SlabWriter {
  ClientId client = 0;  // 0: it has left
  std::uint32_t uid = 0, pid = 0;
  std::uint64_t instance = 0;  // Hello::instance
  Domain* domain = nullptr;
  std::shared_ptr<WatchedProcess> process;  // once it has left
  bool gone = false;                        // the process has ended
  std::uint64_t bytes = 0;                  // of its slabs, while it is there
  std::uint32_t granted = 0;                // slots that it has been granted and not answered for
  std::deque<OpenGrant> open;               // by deadline; answered ones go when their turn comes
};

}  // namespace kvm::daemon
