// The pool of a simulated worker: a region whose blocks it writes a part at a time, through a real
// generation table and real memory.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/shm/sealed_memory.h"
#include "proto/wire/publish_record.h"
#include "tests/simulation/content.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

inline constexpr std::uint32_t kPoolBlocks = 8;

const ModelSpec& SpecOf(std::uint32_t model);  // 0 or 1

class Pool {
 public:
  struct Block {
    std::uint32_t number = 0;  // of its key
    Generation write = 0;      // odd while it is being written
    std::uint32_t words = 0;   // that are written by now
    PublishRecord record;      // of the last publish
    bool published = false;
  };

  static kvmwire::RegionDescriptor Describe(const std::string& name, std::uint32_t model);

  // Null: no memory. `granted`: generation table and payload that kvmd made, else sealed memory of
  // its own.
  static std::unique_ptr<Pool> Make(World& world, std::uint32_t domain, const std::string& name, std::uint32_t model,
                                    std::vector<UniqueFd> granted);
  // The pool of a dead worker. Null: no memory.
  static std::unique_ptr<Pool> Adopt(World& world, std::uint32_t domain, const kvmwire::AdoptRegionReply& reply,
                                     std::vector<UniqueFd>& fds);

  void Begin(std::uint32_t block, std::uint32_t number);
  // The next words. True: the block is complete, and readable if no other write has begun.
  bool GoOn(std::uint32_t block);
  void Withdraw(std::uint32_t block);  // BeginWrite without bytes
  void EndAll();                       // before the memory is used for anything else

  bool Readable(std::uint32_t block) const {
    return blocks[block].published && generations.StillValid(block, blocks[block].record.generation);
  }
  const std::byte* At(std::uint32_t block) const { return payload.data() + block * kBlockBytes; }
  std::vector<PublishRecord> Published() const;  // that are readable

  kvmwire::RegionDescriptor descriptor;
  OwnedMemory generation_memory, payload;
  GenerationWriter generations;
  std::vector<Block> blocks;
  std::uint32_t model = 0, row = 0, region_epoch = 0;
  bool registered = false, asked = false;  // on this connection

 private:
  Pool(World& world, std::uint32_t domain) : blocks(kPoolBlocks), world_(world), domain_(domain) {}
  void Track();
  void Seen(std::uint32_t block) { table_->generations[block] = generations.Current(block); }

  World& world_;
  const std::uint32_t domain_;
  std::shared_ptr<Table> table_;
};

}  // namespace kvm::simulation
