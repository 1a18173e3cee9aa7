// An importer without libkvclient: maps announced regions by hand, reads the index and copies
// through the host backend. It can also import without checking generations, for tests that must be
// able to fail.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cuda/memory_backend.h"
#include "kvm/model_spec.h"
#include "tests/support/kvmd/registry_probe.h"

namespace kvm::test {

struct RawOutcome {
  std::size_t imported = 0;  // blocks the backend calls valid
  std::size_t stale = 0;     // blocks it refused
  std::size_t wrong = 0;     // imported ones whose bytes are not those of their key
};

class RawImporter {
 public:
  // Connects and maps every contiguous region of `spec` that is live now, of blocks of
  // `block_bytes`.
  [[nodiscard]] static Result<std::unique_ptr<RawImporter>> Start(const std::string& socket_path, const ModelSpec& spec,
                                                                  std::uint64_t block_bytes);

  // Looks each key up and copies it by itself, if its entry names a mapped region.
  RawOutcome Import(std::span<const BlockKey> keys);
  // The same, unchecked: after the first half of each block this waits until the owner has
  // rewritten the block, at most a second, so the copied bytes are certainly wrong.
  RawOutcome ImportUnchecked(std::span<const BlockKey> keys);
  std::size_t regions() const noexcept { return regions_.size(); }

 private:
  struct Region {
    Geometry geometry;
    std::unique_ptr<PeerMemory> memory;
    PeerGenerations generations;
    CopyPlan plan;
  };
  // Copies the entry's block; returns whether the bytes count as valid.
  using Copy = std::function<bool(const Region& region, const ImportBlock& block)>;
  RawOutcome ImportBy(std::span<const BlockKey> keys, const Copy& copy);
  bool CopyTo(const LocalMemory& destination, const Region& region, const PeerGenerations& generations, const ImportBlock& block);
  Status MapRegion(const kvmwire::RegionAnnounce& announce, std::vector<UniqueFd> fds);

  explicit RawImporter(WireClient connection) : connection_(std::move(connection)) {}

  WireClient connection_;
  RegistryView registry_;
  std::shared_ptr<MemoryBackend> backend_ = MakeHostBackend();
  Geometry destination_geometry_;
  std::unique_ptr<LocalMemory> destination_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, Region> regions_;  // by row and epoch
};

}  // namespace kvm::test
