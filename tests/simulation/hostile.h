// A hostile member of a domain. It says anything: about its own regions, about those of others,
// with descriptors that it was handed, in any order. What it publishes has keys of its own (kLie),
// since no process can check which bytes belong to a key; it changes no byte of others, since a
// member of a domain to which kvmd gives a dead worker's memory may.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "proto/shm/registry_view.h"
#include "tests/simulation/client_link.h"
#include "tests/simulation/world.h"

namespace kvm::simulation {

class Hostile {
 public:
  // `victim`: a user, for the names of its regions.
  Hostile(World& world, std::uint32_t uid, std::uint32_t victim)
      : world_(world), uid_(uid), victim_(victim), link_(world, uid, "hostile") {}

  void DoSomething();
  void Die(bool cut);

 private:
  struct Place {
    std::uint32_t row = 0, region_epoch = 0, block = 0;
    std::uint64_t generation = 0;
  };

  void Receive();
  void Register(bool stolen);
  Place AnyPlace();  // a real one, or one near it
  kvmwire::ClientMessage AnyMessage();
  kvmwire::ClientMessage AboutBlocks(std::uint64_t kind);
  kvmwire::ClientMessage AboutMemory(std::uint64_t kind);
  std::string AnyRecords(const Place& place);
  void Mark(kvmwire::MarkComputing& mark);
  void Evict(kvmwire::Evict& evict);
  kvmwire::ClientMessage Garbage();

  World& world_;
  const std::uint32_t uid_, victim_;
  ClientLink link_;
  RegistryView registry_;
  OwnedMemory table_, payload_;  // of its own region
  std::vector<UniqueFd> handed_;
};

}  // namespace kvm::simulation
