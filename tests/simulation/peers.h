// What a simulated client sees over one connection: the registry and the regions of others that it
// has mapped, and its copies from them, a part of a block at a time, with the generation compared
// before the first and after the last part. It outlives its connection, as in libkvclient.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "proto/shm/registry_view.h"
#include "proto/shm/sealed_memory.h"
#include "tests/simulation/content.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

using RegionName = std::pair<std::uint32_t, std::uint32_t>;  // row, region epoch

struct Peer {
  MappedMemory generation_memory, payload;
  GenerationReader generations;
  bool cached = false;
};

class Peers {
 public:
  Peers(World& world, std::uint32_t domain, RegistryView registry) : world_(world), domain_(domain), registry_(std::move(registry)) {}

  void Announced(ToClient& announced);
  // True: no copy from it is under way, and it is unmapped now. Otherwise it is unmapped later.
  bool Withdrawn(const RegionName& region, bool wants_ack);
  // Withdrawn regions whose copies have ended: they are unmapped, and to be acknowledged.
  std::vector<RegionName> TakeUnmapped();
  bool Maps(const RegionName& region) const;

  const RegistryView& registry() const noexcept { return registry_; }
  // Looks the key up and begins a copy of one of its replicas. Null: there is none that is mapped
  // and readable.
  std::optional<IndexHit> Begin(std::uint32_t number);
  void GoOn(bool kvmd_is_down);
  std::size_t under_way() const noexcept { return copies_.size(); }

 private:
  struct Copy {
    std::shared_ptr<Peer> peer;
    std::uint32_t block = 0, number = 0, words = 0;
    Generation generation = 0;
    BlockBytes bytes{};
  };
  struct Leaving {
    RegionName region;
    std::shared_ptr<Peer> peer;
    bool wants_ack = false;
  };

  World& world_;
  const std::uint32_t domain_;
  const RegistryView registry_;
  std::map<RegionName, std::shared_ptr<Peer>> mapped_;
  std::vector<Leaving> leaving_;
  std::vector<Copy> copies_;
};

}  // namespace kvm::simulation
