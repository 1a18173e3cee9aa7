// Framing of kvmd-mesh's messages, over TCP and over the Unix socket of a node.
//
//   frame = u32 0x4D4D564B | u32 message_bytes | u64 payload_bytes | message | payload   (LE)
//
// Both lengths come from another process and are checked before any memory is taken for them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kvm/block_key.h"
#include "kvm/error.h"

namespace kvm::mesh {

inline constexpr std::uint32_t kMeshVersion = 1;
inline constexpr std::uint32_t kBulkVersion = 1;
inline constexpr std::size_t kMeshHeaderBytes = 16;
inline constexpr std::uint32_t kMaxMessageBytes = 256u << 10;
inline constexpr std::uint64_t kMaxPayloadBytes = std::uint64_t{256} << 20;
inline constexpr std::size_t kMaxKeys = 8192;    // of one request
inline constexpr std::size_t kMaxTogether = 32;  // blocks in one answer
// Of a description
inline constexpr std::uint32_t kMaxBlockTokens = 4096;
inline constexpr std::size_t kMaxAdapterBytes = 512;

struct MeshFrameHeader {
  std::uint32_t message_bytes = 0;
  std::uint64_t payload_bytes = 0;
};

using MeshHeaderBytes = std::array<std::byte, kMeshHeaderBytes>;
MeshHeaderBytes EncodeMeshHeader(const MeshFrameHeader& header) noexcept;
// kProtocol: another mark, or a length over its limit.
[[nodiscard]] Result<MeshFrameHeader> DecodeMeshHeader(const MeshHeaderBytes& bytes);

std::string EncodeKeys(std::span<const BlockKey> keys);
// kProtocol: not a whole number of keys, none, or more than kMaxKeys.
[[nodiscard]] Result<std::vector<BlockKey>> DecodeKeys(const std::string& bytes);

std::string EncodeTokens(std::span<const std::uint32_t> tokens);
// kProtocol: not a whole number of tokens.
[[nodiscard]] Result<std::vector<std::uint32_t>> DecodeTokens(const std::string& bytes);

}  // namespace kvm::mesh
