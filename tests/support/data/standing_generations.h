// A generation table that always shows the expected values, so that every check against it passes.
// The library can't skip the check, so a test uses this table to prove that it would notice wrong
// bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "cuda/memory_backend.h"
#include "tests/catch.h"

namespace kvm::test {

class StandingGenerations {
 public:
  StandingGenerations(std::uint32_t block_count, std::span<const ImportBlock> blocks) {
    Result<OwnedMemory> memory = OwnedMemory::Create("test:standing-generations", GenerationTableBytes(block_count));
    KVM_REQUIRE_OK(memory);
    memory_ = std::move(*memory);
    GenerationWriter::Format({memory_.data(), memory_.size()}, block_count);
    auto* const counters = reinterpret_cast<Generation*>(memory_.data() + sizeof(GenerationHeader));
    for (const ImportBlock& block : blocks) std::atomic_ref(counters[block.source_block]).store(block.generation);
    Result<PeerGenerations> mapped = MapGenerations(memory_.fd(), block_count);
    KVM_REQUIRE_OK(mapped);
    generations_ = std::move(*mapped);
  }

  PeerGenerations& Get() { return generations_; }
  const PeerGenerations& Get() const { return generations_; }

 private:
  OwnedMemory memory_;
  PeerGenerations generations_;
};

}  // namespace kvm::test
