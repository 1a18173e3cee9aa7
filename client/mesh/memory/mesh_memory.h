// MeshMemory: the regions of the mesh process, two for each shape of blocks: one into which blocks
// of peers are received and which is published, and one for staging, which is never published.
//
// A region is made at its first use, and its pages are mapped behind that, step by step: the first
// write to a page that is not mapped costs as much as receiving it. Coroutines of one io_context.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "client/mesh/log/line_limit.h"
#include "client/mesh/memory/shape.h"
#include "client/mesh/memory/slot_pool.h"
#include "client/mesh/threads/work_threads.h"
#include "client/mesh/transfer/transfer.h"
#include "kvclient/client.h"

namespace kvm::mesh {

enum class PoolUse : std::uint8_t { kLanding, kStaging };

class MeshMemory {
 public:
  // `bytes`: of each region of that use. `threads`: where calls that wait for kvmd run.
  MeshMemory(std::shared_ptr<Client> client, WorkThreads& threads, PoolUse use, std::uint64_t bytes);

  // The pool for blocks of `shape`. kUnsupported: the configured size is less than one block.
  // kResourceExhausted: kMaxPools others exist, another call is making it, or there is too little
  // memory.
  Awaitable<Result<std::shared_ptr<SlotPool>>> Get(Model model, BlockShape shape);
  // Null: there is none.
  std::shared_ptr<SlotPool> Existing(const BlockShape& shape) const;

  static constexpr std::size_t kMaxPools = 24;

 private:
  // Tells the log that a pool was not made.
  Error NotMade(Error error);
  // Maps the pages of the pool from byte `from` on, on the thread, a step at a time.
  void MapFrom(const std::shared_ptr<SlotPool>& pool, std::uint64_t from);

  using Pools = std::map<BlockShape, std::shared_ptr<SlotPool>>;
  class Making;

  std::shared_ptr<Client> client_;
  WorkThreads& threads_;
  const PoolUse use_;
  const std::uint64_t bytes_;
  const std::string names_;  // of its regions: the part before their numbers
  Pools pools_;              // null: being made
  unsigned made_ = 0;
  LineLimit not_made_lines_{std::chrono::minutes(1)};
};

}  // namespace kvm::mesh
