// Blocks for a disk cache, whose bytes follow from their number, and a cache in a directory of the
// test.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "client/mesh/disk/disk_cache.h"
#include "client/mesh/memory/checksum.h"
#include "proto/base/random.h"
#include "tests/catch.h"

namespace kvm::test {

inline const std::string kDiskDomain = "uid:1000";

inline mesh::BlockShape DiskShape(std::uint64_t block_bytes) {
  mesh::BlockShape out;
  out.fingerprint.bytes.fill(7);
  out.block_bytes = block_bytes;
  return out;
}

// Block `depth` of prompt `prompt`.
inline BlockKey DiskKey(std::uint64_t prompt, std::uint32_t depth) { return {Mix(prompt, depth), Mix(depth, prompt)}; }

inline void FillDiskBlock(const BlockKey& key, std::span<std::byte> bytes) {
  SplitMix random(key.hi);
  for (std::byte& each : bytes) each = static_cast<std::byte>(random.Next());
}

class DiskBlocks {
 public:
  // The first `count` blocks of `prompt`, in aligned memory.
  DiskBlocks(std::uint64_t prompt, std::uint32_t count, std::uint64_t block_bytes)
      : shape(DiskShape(block_bytes)), stride_(mesh::WholePages(block_bytes)), memory_(stride_ * count) {
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::span<std::byte> bytes(memory_.data() + stride_ * i, block_bytes);
      keys.push_back(DiskKey(prompt, i));
      FillDiskBlock(keys.back(), bytes);
      blocks.push_back({keys.back(), i == 0 ? 0 : keys[i - 1].lo, i, shape, bytes.data(), mesh::BlockChecksum(bytes)});
    }
  }

  const mesh::BlockShape shape;
  std::vector<BlockKey> keys;
  std::vector<mesh::NewDiskBlock> blocks;

 private:
  std::uint64_t stride_;
  mesh::AlignedBuffer memory_;
};

struct DiskReadCheck {
  std::size_t good = 0, not_here = 0, bad = 0, failed = 0;
  std::size_t wrong = 0;  // of the good ones: other bytes than the key's. Must be 0
};

// Reads `keys` all at once. `misaligned`: into memory that O_DIRECT does not take.
inline DiskReadCheck ReadDisk(mesh::DiskCache& cache, const std::vector<BlockKey>& keys, std::uint64_t block_bytes,
                              bool misaligned = false) {
  const std::uint64_t stride = mesh::WholePages(block_bytes + 1);
  const mesh::AlignedBuffer memory(stride * keys.size());
  std::vector<mesh::DiskRead> reads;
  for (std::size_t i = 0; i < keys.size(); ++i) reads.push_back({keys[i], memory.data() + stride * i + (misaligned ? 1 : 0)});
  cache.Read(DiskShape(block_bytes), reads);
  DiskReadCheck out;
  std::vector<std::byte> expected(block_bytes);
  for (const mesh::DiskRead& read : reads) {
    out.good += read.end == mesh::DiskReadEnd::kGood ? 1 : 0;
    out.not_here += read.end == mesh::DiskReadEnd::kNotHere ? 1 : 0;
    out.bad += read.end == mesh::DiskReadEnd::kBad ? 1 : 0;
    out.failed += read.end == mesh::DiskReadEnd::kFailed ? 1 : 0;
    if (read.end != mesh::DiskReadEnd::kGood) continue;
    FillDiskBlock(read.key, expected);
    out.wrong += std::equal(expected.begin(), expected.end(), read.into) ? 0 : 1;
  }
  return out;
}

inline std::unique_ptr<mesh::DiskCache> OpenDisk(const mesh::DiskOptions& options, const std::string& domain = kDiskDomain) {
  Result<std::unique_ptr<mesh::DiskCache>> cache = mesh::DiskCache::Open(options);
  KVM_REQUIRE_OK(cache);
  KVM_REQUIRE_OK((*cache)->Recover(domain));
  return std::move(*cache);
}

// Both ways to read and write, or the one that the kernel has.
inline std::vector<mesh::IoKind> IoKinds() {
  std::vector<mesh::IoKind> out{mesh::IoKind::kPlain};
  if (mesh::MakeBlockIo(mesh::IoKind::kUring)) out.push_back(mesh::IoKind::kUring);
  return out;
}

}  // namespace kvm::test
