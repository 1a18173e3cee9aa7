// An index of blocks in memory of its own, with kvmd's writer, the reverse map that kvmd keeps, and
// a reader.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>

#include "daemon/registry/block_index_writer.h"
#include "proto/shm/registry_view.h"

namespace kvm::test {

struct IndexTable {
  IndexTable(std::uint64_t count_, std::uint64_t max_entries)
      : count(count_),
        slots(new layout::IndexSlot[count]()),
        tags(new layout::TagWord[layout::TagWords(count)]()),
        writer(slots.get(), tags.get(), count, max_entries, &moves,
               [this](const IndexEntry& entry, std::uint64_t slot) {
                 slot_of[{entry.region, entry.block}] = slot;
               }),
        reader(slots.get(), count, &moves, tags.get()) {}

  std::uint64_t Insert(const IndexEntry& entry) {
    const std::uint64_t slot = writer.Insert(entry);
    if (slot != daemon::kNoSlot) slot_of[{entry.region, entry.block}] = slot;
    return slot;
  }
  void Erase(std::uint32_t region, std::uint32_t block) {
    const auto found = slot_of.find({region, block});
    const std::uint64_t slot = found->second;
    slot_of.erase(found);
    writer.Erase(slot);
  }

  const std::uint64_t count;
  std::unique_ptr<layout::IndexSlot[]> slots;
  std::unique_ptr<layout::TagWord[]> tags;
  std::atomic<std::uint64_t> moves{0};
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint64_t> slot_of;
  daemon::BlockIndexWriter writer;
  IndexReader reader;
};

}  // namespace kvm::test
