// Builds registry segments for tests, fuzzing and benchmarks: a plain writer of proto/shm/layout.h
// that shares no code with kvmd's. Entries are only added.
#pragma once

#include <cstdint>
#include <string>

#include "kvm/model_spec.h"
#include "proto/shm/layout.h"
#include "proto/shm/registry_view.h"
#include "proto/shm/sealed_memory.h"

namespace kvm::test {

class SegmentBuilder {
 public:
  SegmentBuilder(std::uint32_t model_rows, std::uint32_t region_rows, std::uint64_t index_slots, HugePages huge = HugePages::kNever);

  layout::RegistryHeader& header() { return *reinterpret_cast<layout::RegistryHeader*>(memory_.data()); }
  layout::ModelRow& model(std::uint32_t row) {
    return reinterpret_cast<layout::ModelRow*>(memory_.data() + header().model_rows_offset)[row];
  }
  layout::RegionRow& region(std::uint32_t row) {
    return reinterpret_cast<layout::RegionRow*>(memory_.data() + header().region_rows_offset)[row];
  }
  layout::IndexSlot& slot(std::uint64_t at) { return reinterpret_cast<layout::IndexSlot*>(memory_.data() + header().index_offset)[at]; }

  void SetModel(std::uint32_t row, const ModelSpec& spec);
  void SetRegion(std::uint32_t row, std::uint32_t region_epoch, const std::string& name);
  // Puts the entry at the end of its key's probe chain; the slot it went to, or index_slots if
  // full.
  std::uint64_t Add(const IndexEntry& entry);

  int fd() const { return memory_.fd(); }
  std::byte* data() const { return memory_.data(); }
  std::size_t size() const { return memory_.size(); }
  Result<RegistryView> Open() const;

 private:
  OwnedMemory memory_;
  std::uint64_t slots_;
};

}  // namespace kvm::test
