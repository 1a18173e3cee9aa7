// A registry segment full of arbitrary bytes: opening refuses it, or every read of every row, slot
// and key stays inside and ends.
#include "proto/shm/registry_view.h"

#include <algorithm>
#include <cstring>

#include "tests/fuzz/targets.h"
#include "tests/support/data/model_specs.h"
#include "tests/support/data/segment_builder.h"

namespace kvm::fuzz {
namespace {

constexpr std::size_t kMaxSegmentBytes = std::size_t{1} << 20;
constexpr std::uint64_t kMaxReads = 4096;  // of each kind, so that an input takes no second

void ReadEverything(const RegistryView& view) {
  layout::ModelInfo model;
  for (std::uint32_t row = 0; row < std::min<std::uint64_t>(view.model_rows(), kMaxReads) + 1; ++row) {
    if (view.ReadModel(row, model) && model.spec_bytes > sizeof(model.spec)) Broken("a model's spec fits its row");
  }
  layout::RegionInfo region;
  for (std::uint32_t row = 0; row < std::min<std::uint64_t>(view.region_rows(), kMaxReads) + 1; ++row) {
    if (view.ReadRegion(row, region) && std::memchr(region.name, '\0', sizeof(region.name)) == nullptr) Broken("a region's name ends");
  }
  IndexEntry entries[layout::kMaxReplicas];
  for (std::uint64_t slot = 0; slot < std::min(view.index().slots(), kMaxReads) + 1; ++slot) {
    IndexEntry entry;
    if (!view.index().ReadSlot(slot, entry)) continue;
    if (slot >= view.index().slots()) Broken("no slot behind the last");
    const std::size_t found = view.index().Find(entry.key, std::span<IndexEntry>(entries));
    if (found > layout::kMaxReplicas) Broken("replicas are limited");
    for (std::size_t i = 0; i < found; ++i) {
      if (entries[i].key != entry.key) Broken("a key finds entries of that key");
    }
  }
}

}  // namespace

void RegistryViewTarget(Bytes input) {
  if (input.empty() || input.size() > kMaxSegmentBytes) return;
  Result<OwnedMemory> memory = OwnedMemory::Create("kvm:fuzz", input.size());
  if (!memory) return;
  std::memcpy(memory->data(), input.data(), input.size());
  Result<MappedMemory> mapped = MappedMemory::Attach(memory->fd());
  if (!mapped) Broken("sealed memory attaches");
  const Result<RegistryView> view = RegistryView::Open(std::move(*mapped));
  if (view) ReadEverything(*view);
}

std::vector<std::string> RegistryViewSeeds() {
  test::SegmentBuilder segment(2, 2, 16);
  segment.SetModel(0, test::LlamaSpec());
  segment.SetRegion(1, 3, "pool");
  for (std::uint64_t i = 0; i < 6; ++i) {
    IndexEntry entry;
    entry.key = {i / 2, (i / 2) << 61};
    entry.region_epoch = 3;
    entry.region = 1;
    entry.generation = 2;
    segment.Add(entry);
  }
  return {std::string(reinterpret_cast<const char*>(segment.data()), segment.size())};
}

}  // namespace kvm::fuzz
