// Reads batches of KV events as a router does, and keeps what it would believe the node to hold.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvm::test {

struct KvEvent {
  std::string type;  // "BlockStored", "BlockRemoved", "AllBlocksCleared"
  std::vector<std::uint64_t> hashes;
  std::optional<std::uint64_t> parent;
  std::vector<std::uint64_t> tokens;
  std::uint64_t block_size = 0;
  std::string medium, adapter;
};

// The events of a payload. Ends the test if it is not of the format.
std::vector<KvEvent> ReadEvents(std::string_view payload);

// What a strict reader believes: it refuses a block whose parent it does not know, one that it
// knows already, and the removal of a block that it does not know.
class EventReader {
 public:
  struct Block {
    std::optional<std::uint64_t> parent;
    std::vector<std::uint64_t> tokens;
    std::string adapter;
  };
  using Key = std::pair<std::string, std::uint64_t>;  // medium, hash

  void Apply(std::string_view payload);
  const std::map<Key, Block>& blocks() const noexcept { return blocks_; }
  // What it has refused; empty if all is well.
  const std::vector<std::string>& refused() const noexcept { return refused_; }
  std::size_t largest_batch() const noexcept { return largest_batch_; }  // in blocks

 private:
  void Store(const KvEvent& event);
  void Remove(const KvEvent& event);
  bool Knows(std::uint64_t hash, const std::string& child_medium) const;

  std::map<Key, Block> blocks_;
  std::vector<std::string> refused_;
  std::size_t largest_batch_ = 0;
};

}  // namespace kvm::test
