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
  const Places at = PlacesFor(sizes);
  const std::uint64_t slots = SlotsFor(sizes.max_entries);
  Result<OwnedMemory> memory = OwnedMemory::Create("kvmd:" + domain, at.end, HugePages::kLater);
  if (!memory) return memory.error();

  RegistrySegment segment;
  segment.memory_ = std::move(*memory);
  layout::RegistryHeader& header = segment.header();
  header.layout_version = layout::kLayoutVersion;
  header.header_bytes = layout::kHeaderBytes;
  header.segment_bytes = segment.size();
  while (header.epoch == 0) {
    if (::getrandom(&header.epoch, sizeof(header.epoch), 0) < 0) return SystemError("getrandom");
  }
  std::memcpy(header.domain, domain.data(), std::min(domain.size(), sizeof(header.domain) - 1));
  header.model_rows_offset = at.models;
  header.region_rows_offset = at.regions;
  header.index_offset = at.index;
  header.tags_offset = at.tags;
  header.marks_offset = at.marks;
  header.mark_buckets = kMarkBuckets;
  header.model_rows = sizes.max_models;
  header.region_rows = sizes.max_regions;
  header.index_slots = slots;
  header.index_entries = sizes.max_entries;
  segment.Heartbeat();
  segment.SetState(layout::SegmentState::kLive);
  header.magic = layout::kRegistryMagic;
  return segment;
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
