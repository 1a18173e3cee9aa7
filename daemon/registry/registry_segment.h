// RegistrySegment: kvmd's side of a registry segment. It creates and seals the memory, and writes
// header, rows and counters.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "daemon/system/config.h"
#include "daemon/system/huge_page_maker.h"
#include "daemon/system/work_meter.h"
#include "kvm/error.h"
#include "proto/shm/layout.h"
#include "proto/shm/sealed_memory.h"

namespace kvm::daemon {

class RegistrySegment {
 public:
  struct Sizes {
    std::uint64_t max_entries;
    std::uint32_t max_regions;
    std::uint32_t max_models;
  };
  // The number of index slots for so many entries: at most three quarters of the slots are ever in
  // use.
  static std::uint64_t SlotsFor(std::uint64_t max_entries);

  // The size in bytes of a segment of these sizes.
  static std::uint64_t BytesFor(const Sizes& sizes);

  // Errors: those of OwnedMemory::Create; kSystem. The epoch is random.
  [[nodiscard]] static Result<RegistrySegment> Create(const std::string& domain, const Sizes& sizes);
  // The same in slices. Until GoOn has returned true, nothing else may be called. Errors as above;
  // after one, GoOn may be called again, or the segment be destroyed.
  [[nodiscard]] static Result<RegistrySegment> Begin(const std::string& domain, const Sizes& sizes);
  [[nodiscard]] Result<bool> GoOn(const WorkBudget& budget);

  // Its memory, which is to be freed. The segment can only be destroyed afterwards.
  OwnedMemory TakeMemory() && { return std::move(memory_); }

  int fd() const noexcept { return memory_.fd(); }
  std::size_t size() const noexcept { return memory_.size(); }
  layout::RegistryHeader& header() const noexcept { return *reinterpret_cast<layout::RegistryHeader*>(memory_.data()); }
  layout::ModelRow* models() const noexcept { return reinterpret_cast<layout::ModelRow*>(memory_.data() + header().model_rows_offset); }
  layout::RegionRow* regions() const noexcept { return reinterpret_cast<layout::RegionRow*>(memory_.data() + header().region_rows_offset); }
  layout::IndexSlot* slots() const noexcept { return reinterpret_cast<layout::IndexSlot*>(memory_.data() + header().index_offset); }
  layout::TagWord* tags() const noexcept { return reinterpret_cast<layout::TagWord*>(memory_.data() + header().tags_offset); }
  layout::MarkRow* marks() const noexcept { return reinterpret_cast<layout::MarkRow*>(memory_.data() + header().marks_offset); }
  layout::Counters& counters() const noexcept { return header().counters; }

  // Has the next part of the segment moved to huge pages; true if another part can be moved now.
  // To be called again whenever `huge_pages` has made some.
  bool MakeSomeHuge(HugePageMaker& huge_pages);
  void Heartbeat() noexcept;
  void SetState(layout::SegmentState state) noexcept { header().state.store(static_cast<std::uint64_t>(state), std::memory_order_release); }

 private:
  Status WriteHeader();

  OwnedMemory memory_;
  std::string domain_;
  Sizes sizes_{};
  std::size_t huge_until_ = 0;
  // While a part is being moved; shared with what the maker calls then
  std::shared_ptr<bool> moving_ = std::make_shared<bool>(false);
};

// There is one writer, so a plain load and store suffice.
inline void Add(std::atomic<std::uint64_t>& counter, std::uint64_t n = 1) noexcept {
  counter.store(counter.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
}

std::uint64_t MonotonicNs() noexcept;
std::uint64_t RealtimeMs() noexcept;

// The size in bytes of the largest segment that a domain of these settings can have.
std::uint64_t LargestRegistryBytes(const Config& config);

}  // namespace kvm::daemon
