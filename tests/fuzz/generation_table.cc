// Generation tables from arbitrary bytes: refused, or every read stays inside.
//
// Input: u32 block_count that the region claims, then the table's bytes.
#include "proto/shm/generation_table.h"

#include <cstring>

#include "tests/fuzz/targets.h"

namespace kvm::fuzz {

void GenerationTableTarget(Bytes input) {
  Consumer in(input);
  const auto blocks = in.Take<std::uint32_t>();
  // Counters are atomic words: a mapping is aligned, the fuzzer's buffer may not be.
  std::vector<std::uint64_t> words((in.left().size() + 7) / 8);
  if (!in.left().empty()) std::memcpy(words.data(), in.left().data(), in.left().size());
  const Result<GenerationReader> reader = GenerationReader::Open(std::as_bytes(std::span(words)).first(in.left().size()), blocks);
  if (!reader) return;
  if (reader->block_count() != blocks || GenerationTableBytes(blocks) > in.left().size()) Broken("a table holds its blocks");
  for (std::uint32_t block = 0; block < blocks; ++block) {
    if (!reader->StillValid(block, reader->Current(block))) Broken("an untouched generation stays valid");
  }
  if (reader->Current(blocks) != 0 || reader->StillValid(blocks, 0)) Broken("a block out of range is never readable");
}

std::vector<std::string> GenerationTableSeeds() {
  constexpr std::uint32_t kBlocks = 3;
  std::vector<std::uint64_t> words(GenerationTableBytes(kBlocks) / 8);
  GenerationWriter writer = GenerationWriter::Format(std::as_writable_bytes(std::span(words)), kBlocks);
  static_cast<void>(writer.FinishWrite(1, writer.BeginWrite(1)));
  writer.BeginWrite(2);
  return {std::string(reinterpret_cast<const char*>(&kBlocks), 4) +
          std::string(reinterpret_cast<const char*>(words.data()), words.size() * 8)};
}

}  // namespace kvm::fuzz
