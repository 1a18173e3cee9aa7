#include "proto/shm/generation_table.h"

#include <cstring>

namespace kvm {

Result<GenerationReader> GenerationReader::Open(std::span<const std::byte> memory, std::uint32_t block_count) {
  GenerationHeader header{};
  if (memory.size() >= sizeof(header)) std::memcpy(&header, memory.data(), sizeof(header));
  if (header.magic != kGenerationMagic) return MakeError(Errc::kProtocol, "generation table: wrong magic");
  if (header.layout_version != kGenerationLayoutVersion) {
    return MakeError(Errc::kVersionMismatch, "generation table: layout version " + std::to_string(header.layout_version) +
                                                 ", this build reads " + std::to_string(kGenerationLayoutVersion));
  }
  const bool checksums = header.has_checksums != 0;
  if (header.block_count != block_count || memory.size() < GenerationTableBytes(block_count, checksums)) {
    return MakeError(Errc::kProtocol, "generation table: " + std::to_string(header.block_count) + " blocks in " +
                                          std::to_string(memory.size()) + " bytes, the region has " + std::to_string(block_count) +
                                          " blocks");
  }
  GenerationReader reader;
  reader.counters_ = reinterpret_cast<const std::atomic<Generation>*>(memory.data() + sizeof(GenerationHeader));
  reader.block_count_ = block_count;
  if (checksums) reader.checksums_ = reader.counters_ + block_count;
  return reader;
}

Result<GenerationWriter> GenerationWriter::Open(std::span<std::byte> memory, std::uint32_t block_count) {
  const Result<GenerationReader> reader = GenerationReader::Open(memory, block_count);
  if (!reader) return reader.error();
  GenerationWriter writer;
  static_cast<GenerationReader&>(writer) = *reader;
  return writer;
}

GenerationWriter GenerationWriter::Format(std::span<std::byte> memory, std::uint32_t block_count, bool checksums) noexcept {
  const GenerationHeader header{kGenerationMagic, kGenerationLayoutVersion, block_count, checksums, 0, {}};
  std::memcpy(memory.data(), &header, sizeof(header));
  GenerationWriter writer;
  writer.counters_ = reinterpret_cast<const std::atomic<Generation>*>(memory.data() + sizeof(GenerationHeader));
  writer.block_count_ = block_count;
  if (checksums) writer.checksums_ = writer.counters_ + block_count;
  return writer;
}

}  // namespace kvm
