// Headers and lists of keys from another process.
#include <cstring>

#include "proto/mesh/mesh_frame.h"
#include "tests/catch.h"

using namespace kvm;
using namespace kvm::mesh;

TEST_CASE("Mesh frame: a header is decoded as it was encoded, at the limits", "[unit]") {
  const auto decoded = DecodeMeshHeader(EncodeMeshHeader({kMaxMessageBytes, kMaxPayloadBytes}));
  KVM_REQUIRE_OK(decoded);
  CHECK(decoded->message_bytes == kMaxMessageBytes);
  CHECK(decoded->payload_bytes == kMaxPayloadBytes);
}

TEST_CASE("Mesh frame: lengths over the limits are refused before memory is taken for them", "[unit]") {
  KVM_CHECK_ERROR(DecodeMeshHeader(EncodeMeshHeader({kMaxMessageBytes + 1, 0})), Errc::kProtocol, "too long");
  KVM_CHECK_ERROR(DecodeMeshHeader(EncodeMeshHeader({0xffffffffu, 0})), Errc::kProtocol, "too long");
  KVM_CHECK_ERROR(DecodeMeshHeader(EncodeMeshHeader({0, kMaxPayloadBytes + 1})), Errc::kProtocol, "too long");
  KVM_CHECK_ERROR(DecodeMeshHeader(EncodeMeshHeader({0, ~std::uint64_t{0}})), Errc::kProtocol, "too long");
}

TEST_CASE("Mesh frame: bytes of another protocol are refused", "[unit]") {
  MeshHeaderBytes bytes{};
  std::memcpy(bytes.data(), "GET / HTTP/1.1\r\n", bytes.size());
  KVM_CHECK_ERROR(DecodeMeshHeader(bytes), Errc::kProtocol, "not a frame");
}

TEST_CASE("Mesh frame: keys are decoded as they were encoded, and part of a key is refused", "[unit]") {
  const std::vector<BlockKey> keys{{1, 2}, {~std::uint64_t{0}, 0x0123456789abcdef}};
  std::string bytes = EncodeKeys(keys);
  const auto decoded = DecodeKeys(bytes);
  KVM_REQUIRE_OK(decoded);
  CHECK(*decoded == keys);
  bytes.pop_back();
  KVM_CHECK_ERROR(DecodeKeys(bytes), Errc::kProtocol, "31 bytes of keys");
  KVM_CHECK_ERROR(DecodeKeys(""), Errc::kProtocol, "0 bytes of keys");
  KVM_CHECK_ERROR(DecodeKeys(std::string((kMaxKeys + 1) * 16, 'x')), Errc::kProtocol, "bytes of keys");
}
