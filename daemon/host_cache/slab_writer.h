// SlabWriter: a client that may write slabs of the host cache, and the slots that it has been
// granted.
//
// SlabWriters (slab_writers.h) and each slab that the client may write share its ownership. It owns
// only its list of grants.
//
// Invariant: a writer exists for as long as its process can write a slab, even after the client has
// disconnected; `process` then tells whether the process has ended.
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

// A slot that a writer has been granted. The writer has answered for it once the slot's state or
// generation has changed.
struct OpenGrant {
  std::chrono::steady_clock::time_point deadline;
  Slab* slab = nullptr;
  policy::Slot slot = 0;  // of the class
  Generation write = 0;
};

struct SlabWriter {
  // Whether its process has ended and no slot waits for it any more.
  bool gone() const noexcept { return ended && !clearing; }

  ClientId client = 0;  // 0: it has disconnected
  std::uint32_t uid = 0, pid = 0;
  std::uint64_t instance = 0;  // Hello::instance
  Domain* domain = nullptr;
  std::shared_ptr<WatchedProcess> process;  // set once it has disconnected
  bool ended = false;                       // the process has
  bool clearing = false;                    // SlabWriters::Work has its slots to look at
  std::uint64_t bytes = 0;                  // of its slabs, while it is connected
  // Slots that it has been granted and has not answered for
  std::uint32_t granted = 0;
  // By deadline; answered grants are removed when they come to the front
  std::deque<OpenGrant> open;
};

}  // namespace kvm::daemon
