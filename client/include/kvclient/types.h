// Small types shared by the headers of libkvclient. Header map: kvclient.h.
#pragma once

#include <chrono>
#include <cstdint>

#include "kvm/block_key.h"
#include "kvm/device.h"
#include "kvm/error.h"
#include "kvm/geometry.h"
#include "kvm/model_spec.h"

namespace kvm {

// A point in time. Every call that can wait takes one, and returns kDeadlineExceeded once it has
// passed.
using Deadline = std::chrono::steady_clock::time_point;

// The point in time that is `timeout` from now.
inline Deadline After(std::chrono::milliseconds timeout) { return std::chrono::steady_clock::now() + timeout; }

// A block's write in progress: the odd generation that BeginWrite returned. Plain data: a scheduler
// process may begin a write and a worker process finish it.
struct BlockWrite {
  std::uint32_t block = 0;
  std::uint64_t generation = 0;
};

// A model that a client has declared: a value, for as long as that client lives. Another client
// declares it itself.
struct Model {
  ModelSpec spec;
  Fingerprint fingerprint;
};

}  // namespace kvm
