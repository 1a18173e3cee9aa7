#include "tests/support/data/segment_builder.h"

#include <cstdlib>
#include <cstring>
#include <iostream>
#include <optional>

namespace kvm::test {
namespace {

OwnedMemory MustCreate(std::size_t bytes, HugePages huge) {
  Result<OwnedMemory> memory = OwnedMemory::Create("kvm:test:registry", bytes, huge);
  if (!memory) {
    std::cerr << "segment for a test: " << memory.error().ToString() << std::endl;
    std::abort();
  }
  return std::move(*memory);
}

// Rounded up to whole cache lines, so that the index behind them stays aligned.
std::size_t TagBytes(std::uint64_t slots) { return (layout::TagWords(slots) * sizeof(layout::TagWord) + 63) / 64 * 64; }

}  // namespace

SegmentBuilder::SegmentBuilder(std::uint32_t model_rows, std::uint32_t region_rows, std::uint64_t index_slots, HugePages huge)
    : memory_(MustCreate(layout::kHeaderBytes + model_rows * sizeof(layout::ModelRow) + region_rows * sizeof(layout::RegionRow) +
                             TagBytes(index_slots) + index_slots * sizeof(layout::IndexSlot),
                         huge)),
      slots_(index_slots) {
  layout::RegistryHeader& out = header();
  out.magic = layout::kRegistryMagic;
  out.layout_version = layout::kLayoutVersion;
  out.header_bytes = layout::kHeaderBytes;
  out.segment_bytes = memory_.size();
  out.epoch = 1;
  std::strcpy(out.domain, "test");
  out.model_rows_offset = layout::kHeaderBytes;
  out.region_rows_offset = out.model_rows_offset + model_rows * sizeof(layout::ModelRow);
  out.tags_offset = out.region_rows_offset + region_rows * sizeof(layout::RegionRow);
  out.index_offset = out.tags_offset + TagBytes(index_slots);
  out.model_rows = model_rows;
  out.region_rows = region_rows;
  out.index_slots = index_slots;
  out.index_entries = index_slots / 2;
  out.state.store(static_cast<std::uint64_t>(layout::SegmentState::kLive));
}

void SegmentBuilder::SetModel(std::uint32_t row, const ModelSpec& spec) {
  layout::ModelInfo info{};
  const std::string canonical = spec.Canonical();
  info.state = 1;
  info.spec_bytes = static_cast<std::uint32_t>(canonical.size());
  info.fingerprint = spec.ComputeFingerprint();
  std::memcpy(info.spec, canonical.data(), canonical.size());
  model(row).Write(info);
}

void SegmentBuilder::SetRegion(std::uint32_t row, std::uint32_t region_epoch, const std::string& name) {
  layout::RegionInfo info{};
  info.state = static_cast<std::uint32_t>(layout::RegionState::kLive);
  info.region_epoch = region_epoch;
  info.handle_kind = static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd);
  info.block_count = 1;
  info.segment_count = 1;
  info.block_bytes = 64;
  info.tp_size = info.pp_size = 1;
  name.copy(info.name, sizeof(info.name));
  region(row).Write(info);
}

std::uint64_t SegmentBuilder::Add(const IndexEntry& entry) {
  std::optional<std::uint64_t> last_replica;
  std::uint64_t at = layout::Home(entry.key, slots_);
  for (std::uint64_t probe = 0; probe < slots_; ++probe, at = at + 1 == slots_ ? 0 : at + 1) {
    layout::IndexSlot& each = slot(at);
    if (each.region_epoch.load() != 0) {
      if (each.key_lo.load() == entry.key.lo && each.key_hi.load() == entry.key.hi) last_replica = at;
      continue;
    }
    each.version.fetch_add(1);
    each.key_lo.store(entry.key.lo);
    each.key_hi.store(entry.key.hi);
    each.generation.store(entry.generation);
    each.parent_lo.store(entry.parent_lo);
    each.region.store(entry.region);
    each.block.store(entry.block);
    each.depth.store(entry.depth);
    each.published_s.store(entry.published_s);
    each.flags.store(0);
    each.region_epoch.store(entry.region_epoch);
    each.version.fetch_add(1);
    if (last_replica) {
      layout::IndexSlot& before = slot(*last_replica);
      before.version.fetch_add(1);
      before.flags.store(layout::IndexSlot::kMore);
      before.version.fetch_add(1);
    }
    auto* const tags = reinterpret_cast<layout::TagWord*>(memory_.data() + header().tags_offset);
    tags[at / 8].fetch_or(layout::Tag(entry.key) << (at % 8 * 8));
    return at;
  }
  return slots_;
}

Result<RegistryView> SegmentBuilder::Open() const {
  Result<MappedMemory> memory = MappedMemory::Attach(memory_.fd(), 1, HugePages::kTry);
  if (!memory) return memory.error();
  return RegistryView::Open(std::move(*memory));
}

}  // namespace kvm::test
