#include "daemon/registry/registry_segment.h"

#include <sys/random.h>
#include <time.h>

#include <algorithm>
#include <cstring>

#include "daemon/system/config_domains.h"
#include "proto/base/round_up.h"

namespace kvm::daemon {
namespace {

std::uint64_t Clock(clockid_t clock) noexcept {
  timespec now{};
  ::clock_gettime(clock, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

// 512 KiB. Eight engines that compute prompts of 100,000 tokens at once mark a fifth of the rows.
constexpr std::uint64_t kMarkBuckets = 2048;

// The kernel clears the pages: half a microsecond for each of 4096 bytes.
constexpr std::size_t kAllocatedAtOnce = std::size_t{4} << 20, kAllocatedBytesPerUnit = 512;
constexpr WorkUnits kReadRoomUnits = 16 * kSystemCallUnits;  // of control groups

// The offsets of a segment's parts, and the segment's size.
struct Places {
  std::uint64_t models, regions, tags, index, marks, end;
};

Places PlacesFor(const RegistrySegment::Sizes& sizes) {
  const std::uint64_t slots = RegistrySegment::SlotsFor(sizes.max_entries);
  Places at{};
  at.models = layout::kHeaderBytes;
  at.regions = at.models + sizes.max_models * sizeof(layout::ModelRow);
  at.tags = RoundUp(at.regions + sizes.max_regions * sizeof(layout::RegionRow), 4096);
  at.index = RoundUp(at.tags + layout::TagWords(slots) * sizeof(layout::TagWord), 4096);
  at.marks = at.index + slots * sizeof(layout::IndexSlot);
  at.end = at.marks + kMarkBuckets * layout::kMarksPerBucket * sizeof(layout::MarkRow);
  return at;
}

}  // namespace

std::uint64_t MonotonicNs() noexcept { return Clock(CLOCK_MONOTONIC); }
std::uint64_t RealtimeMs() noexcept { return Clock(CLOCK_REALTIME) / 1'000'000; }

std::uint64_t RegistrySegment::SlotsFor(std::uint64_t max_entries) { return RoundUp(max_entries + max_entries / 3 + 1, 64); }

std::uint64_t RegistrySegment::BytesFor(const Sizes& sizes) { return PlacesFor(sizes).end; }

Result<RegistrySegment> RegistrySegment::Create(const std::string& domain, const Sizes& sizes) {
  Result<RegistrySegment> segment = Begin(domain, sizes);
  for (bool whole = false; segment && !whole;) {
    const Result<bool> made = segment->GoOn(WorkBudget());
    if (!made) return made.error();
    whole = *made;
  }
  return segment;
}

Result<RegistrySegment> RegistrySegment::Begin(const std::string& domain, const Sizes& sizes) {
  Result<OwnedMemory> memory = OwnedMemory::Reserve("kvmd:" + domain, PlacesFor(sizes).end, HugePages::kLater);
  if (!memory) return memory.error();
  RegistrySegment segment;
  segment.memory_ = std::move(*memory);
  segment.domain_ = domain;
  segment.sizes_ = sizes;
  return segment;
}

Result<bool> RegistrySegment::GoOn(const WorkBudget& budget) {
  while (!memory_.whole()) {
    if (budget.used_up()) return false;
    Spend(std::min(kAllocatedAtOnce, memory_.size()) / kAllocatedBytesPerUnit + kReadRoomUnits);
    if (Status allocated = memory_.AllocateSome(kAllocatedAtOnce); !allocated) return allocated.error();
  }
  if (Status written = WriteHeader(); !written) return written.error();
  return true;
}

Status RegistrySegment::WriteHeader() {
  const Places at = PlacesFor(sizes_);
  layout::RegistryHeader& to = header();
  to.layout_version = layout::kLayoutVersion;
  to.header_bytes = layout::kHeaderBytes;
  to.segment_bytes = size();
  while (to.epoch == 0) {
    if (::getrandom(&to.epoch, sizeof(to.epoch), 0) < 0) return SystemError("getrandom");
  }
  std::memcpy(to.domain, domain_.data(), std::min(domain_.size(), sizeof(to.domain) - 1));
  to.model_rows_offset = at.models;
  to.region_rows_offset = at.regions;
  to.index_offset = at.index;
  to.tags_offset = at.tags;
  to.marks_offset = at.marks;
  to.mark_buckets = kMarkBuckets;
  to.model_rows = sizes_.max_models;
  to.region_rows = sizes_.max_regions;
  to.index_slots = SlotsFor(sizes_.max_entries);
  to.index_entries = sizes_.max_entries;
  Heartbeat();
  SetState(layout::SegmentState::kLive);
  to.magic = layout::kRegistryMagic;
  return {};
}

bool RegistrySegment::MakeSomeHuge(HugePageMaker& huge_pages) {
  constexpr std::size_t kSlice = std::size_t{8} << 20;
  if (*moving_ || huge_until_ >= memory_.size()) return false;
  *moving_ = true;
  const std::size_t bytes = std::min(kSlice, memory_.size() - huge_until_);
  huge_pages.Make(memory_.fd(), huge_until_, bytes, [moving = moving_](std::uint64_t) { *moving = false; });
  huge_until_ += kSlice;
  return !*moving_ && huge_until_ < memory_.size();
}

void RegistrySegment::Heartbeat() noexcept { header().heartbeat_ns.store(MonotonicNs(), std::memory_order_relaxed); }

std::uint64_t LargestRegistryBytes(const Config& config) {
  const auto bytes = [&](const std::string& domain) {
    const Config its = SettingsOf(config, domain);
    return RegistrySegment::BytesFor({its.max_entries, its.max_regions, its.max_models});
  };
  std::uint64_t largest = bytes("");
  for (const DomainRule& rule : config.domains) largest = std::max(largest, bytes(rule.name));
  return largest;
}

}  // namespace kvm::daemon
