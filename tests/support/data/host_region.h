// A region over the host backend without kvmd: memory, generations, and content that can be
// recognised.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/memory_backend.h"
#include "proto/base/sanitizers.h"
#include "tests/catch.h"
#include "tests/support/data/geometries.h"

namespace kvm::test {

// Content of a block: 64-bit words that repeat `id`, mixed with their position; partial at the end.
inline std::vector<std::byte> BlockContent(std::uint64_t id, std::uint64_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::uint64_t at = 0; at < bytes; at += 8) {
    const std::uint64_t word = id * 0x9e3779b97f4a7c15ULL + at;
    std::memcpy(out.data() + at, &word, std::min<std::uint64_t>(8, bytes - at));
  }
  return out;
}

struct HostRegion {
  static constexpr std::uint64_t kNothing = ~std::uint64_t{0};  // content: zeros

  explicit HostRegion(const NamedGeometry& layout) : geometry(layout.geometry) {
    const std::shared_ptr<MemoryBackend> backend = MakeHostBackend();
    auto allocated = backend->Allocate("test", layout.segment_bytes);
    KVM_REQUIRE_OK(allocated);
    memory = std::move(*allocated);
    auto viewed = backend->View(*memory);
    KVM_REQUIRE_OK(viewed);
    peer = std::move(*viewed);
    Result<OwnedMemory> table = OwnedMemory::Create("kvm:test:generations", GenerationTableBytes(geometry.block_count));
    KVM_REQUIRE_OK(table);
    generation_memory = std::move(*table);
    writer = GenerationWriter::Format({generation_memory.data(), generation_memory.size()}, geometry.block_count);
    Result<PeerGenerations> mapped = MapGenerations(generation_memory.fd(), geometry.block_count);
    KVM_REQUIRE_OK(mapped);
    generations = std::move(*mapped);
  }

  // Maps the memory as another process would.
  void MapByDescriptor() {
    std::vector<SegmentHandle> handles;
    for (const SegmentHandle& each : memory->handles()) {
      SegmentHandle handle;
      handle.size_bytes = each.size_bytes;
      handle.fd.Reset(::dup(each.fd.get()));
      handles.push_back(std::move(handle));
    }
    auto mapped = MakeHostBackend()->Map(std::move(handles));
    KVM_REQUIRE_OK(mapped);
    peer = std::move(*mapped);
  }

  // Visits every chunk of a block, in order: visit(address, bytes).
  template <class Visit>
  void ForEachChunk(std::uint32_t block, Visit visit) const {
    for (const GeometryPart& part : geometry.parts) {
      for (std::uint32_t repeat = 0; repeat < part.count; ++repeat) {
        visit(memory->SegmentData(part.segment) + part.offset + repeat * part.repeat_stride + block * part.block_stride, part.chunk_bytes);
      }
    }
  }

  void Write(std::uint32_t block, std::uint64_t id) {
    const std::vector<std::byte> content = BlockContent(id, geometry.BlockBytes());
    const std::byte* from = content.data();
    ForEachChunk(block, [&](std::byte* to, std::uint64_t bytes) {
      RacyCopy(to, from, bytes);
      from += bytes;
    });
  }

  // Makes one write in the owner's order, and returns the new generation.
  Generation Publish(std::uint32_t block, std::uint64_t id) {
    const Generation write = writer.BeginWrite(block);
    Write(block, id);
    REQUIRE(writer.FinishWrite(block, write));
    return write + 1;
  }

  // The same with the new generation as content. Makes no assertion, so it may run in a thread.
  void PublishGeneration(std::uint32_t block) {
    const Generation write = writer.BeginWrite(block);
    Write(block, write + 1);
    static_cast<void>(writer.FinishWrite(block, write));
  }

  bool Holds(std::uint32_t block, std::uint64_t id) const {
    std::vector<std::byte> content(geometry.BlockBytes());
    if (id != kNothing) content = BlockContent(id, geometry.BlockBytes());
    const std::byte* expected = content.data();
    bool same = true;
    ForEachChunk(block, [&](const std::byte* at, std::uint64_t bytes) {
      same = same && std::memcmp(at, expected, bytes) == 0;
      expected += bytes;
    });
    return same;
  }

  // Readers race with writes of the payload on purpose: the generations decide whether a copy
  // counts.
#if defined(KVM_THREAD_SANITIZER)
  KVM_RACES_ON_PURPOSE static void RacyCopy(std::byte* to, const std::byte* from, std::uint64_t bytes) {
    for (std::uint64_t i = 0; i < bytes; ++i) to[i] = from[i];
  }
#else
  static void RacyCopy(std::byte* to, const std::byte* from, std::uint64_t bytes) { std::memcpy(to, from, bytes); }
#endif

  Geometry geometry;
  std::unique_ptr<LocalMemory> memory;
  std::unique_ptr<PeerMemory> peer;
  OwnedMemory generation_memory;
  GenerationWriter writer;
  PeerGenerations generations;
};

}  // namespace kvm::test
