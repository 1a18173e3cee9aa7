#include "proto/mesh/mesh_frame.h"

#include <boost/endian/conversion.hpp>

namespace kvm::mesh {
namespace {

constexpr std::uint32_t kMeshMark = 0x4D4D564B;  // "KVMM"
constexpr std::size_t kKeyBytes = 16;
constexpr std::size_t kTokenBytes = 4;

unsigned char* Raw(std::byte* bytes) { return reinterpret_cast<unsigned char*>(bytes); }
const unsigned char* Raw(const void* bytes) { return static_cast<const unsigned char*>(bytes); }

}  // namespace

MeshHeaderBytes EncodeMeshHeader(const MeshFrameHeader& header) noexcept {
  MeshHeaderBytes out{};
  boost::endian::store_little_u32(Raw(out.data()), kMeshMark);
  boost::endian::store_little_u32(Raw(out.data() + 4), header.message_bytes);
  boost::endian::store_little_u64(Raw(out.data() + 8), header.payload_bytes);
  return out;
}

Result<MeshFrameHeader> DecodeMeshHeader(const MeshHeaderBytes& bytes) {
  if (boost::endian::load_little_u32(Raw(bytes.data())) != kMeshMark) return MakeError(Errc::kProtocol, "not a frame of kvmd-mesh");
  const MeshFrameHeader header{boost::endian::load_little_u32(Raw(bytes.data() + 4)),
                               boost::endian::load_little_u64(Raw(bytes.data() + 8))};
  if (header.message_bytes > kMaxMessageBytes) {
    return MakeError(Errc::kProtocol, "a message of " + std::to_string(header.message_bytes) + " bytes is too long");
  }
  if (header.payload_bytes > kMaxPayloadBytes) {
    return MakeError(Errc::kProtocol, "a payload of " + std::to_string(header.payload_bytes) + " bytes is too long");
  }
  return header;
}

std::string EncodeKeys(std::span<const BlockKey> keys) {
  std::string out(keys.size() * kKeyBytes, '\0');
  auto* at = reinterpret_cast<unsigned char*>(out.data());
  for (const BlockKey& key : keys) {
    boost::endian::store_little_u64(at, key.lo);
    boost::endian::store_little_u64(at + 8, key.hi);
    at += kKeyBytes;
  }
  return out;
}

Result<std::vector<BlockKey>> DecodeKeys(const std::string& bytes) {
  if (bytes.empty() || bytes.size() % kKeyBytes != 0 || bytes.size() / kKeyBytes > kMaxKeys) {
    return MakeError(Errc::kProtocol, std::to_string(bytes.size()) + " bytes of keys: not 1 to " + std::to_string(kMaxKeys) + " keys");
  }
  std::vector<BlockKey> keys(bytes.size() / kKeyBytes);
  const unsigned char* at = Raw(bytes.data());
  for (BlockKey& key : keys) {
    key.lo = boost::endian::load_little_u64(at);
    key.hi = boost::endian::load_little_u64(at + 8);
    at += kKeyBytes;
  }
  return keys;
}

std::string EncodeTokens(std::span<const std::uint32_t> tokens) {
  std::string out(tokens.size() * kTokenBytes, '\0');
  auto* at = reinterpret_cast<unsigned char*>(out.data());
  for (const std::uint32_t token : tokens) {
    boost::endian::store_little_u32(at, token);
    at += kTokenBytes;
  }
  return out;
}

Result<std::vector<std::uint32_t>> DecodeTokens(const std::string& bytes) {
  if (bytes.size() % kTokenBytes != 0)
    return MakeError(Errc::kProtocol, std::to_string(bytes.size()) + " bytes of tokens: 4 each are needed");
  std::vector<std::uint32_t> tokens(bytes.size() / kTokenBytes);
  const unsigned char* at = Raw(bytes.data());
  for (std::uint32_t& token : tokens) {
    token = boost::endian::load_little_u32(at);
    at += kTokenBytes;
  }
  return tokens;
}

}  // namespace kvm::mesh
