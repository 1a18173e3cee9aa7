// Pins of everything that two processes share byte for byte: sizes, offsets, constants. A failure
// here means that a layout changed: raise kLayoutVersion (or kProtocolVersion), then change the
// pin.
#include <algorithm>
#include <cstddef>
#include <string_view>
#include <vector>

#include "proto/shm/generation_table.h"
#include "proto/shm/layout.h"
#include "proto/wire/protocol_limits.h"
#include "proto/wire/publish_record.h"
#include "tests/catch.h"

// offsetof of structs with atomics is conditionally supported; GCC and Clang define it.
#pragma GCC diagnostic ignored "-Winvalid-offsetof"

#define KVM_PIN(type, field, offset)                                            \
  static_assert(offsetof(type, field) == (offset), #type "::" #field " moved"); \
  REQUIRE(offsetof(type, field) == (offset))

#define KVM_PIN_SIZE(type, bytes)                                \
  static_assert(sizeof(type) == (bytes), #type " changed size"); \
  REQUIRE(sizeof(type) == (bytes))

using namespace kvm;
using namespace kvm::layout;

TEST_CASE("Layout: constants of version 1", "[unit]") {
  REQUIRE(kRegistryMagic == 0x31474552444D564BULL);
  REQUIRE(kLayoutVersion == 1);
  REQUIRE(kHeaderBytes == 4096);
  REQUIRE(kMaxReplicas == 8);
  REQUIRE(kGenerationMagic == 0x314E45474D564BULL);
  REQUIRE(kGenerationLayoutVersion == 1);
  REQUIRE(kProtocolVersion == 3);
  REQUIRE(kMaxFrameBytes == 1048576);
  REQUIRE(kMaxFrameFds == 129);
  REQUIRE(kMaxPublishBatch == 8192);
  REQUIRE(kMaxNameBytes == 63);
  REQUIRE(IndexSlot::kMore == 1);
}

TEST_CASE("Layout: the registry header", "[unit]") {
  KVM_PIN(RegistryHeader, magic, 0);
  KVM_PIN(RegistryHeader, layout_version, 8);
  KVM_PIN(RegistryHeader, header_bytes, 12);
  KVM_PIN(RegistryHeader, segment_bytes, 16);
  KVM_PIN(RegistryHeader, epoch, 24);
  KVM_PIN(RegistryHeader, domain, 32);
  KVM_PIN(RegistryHeader, model_rows_offset, 96);
  KVM_PIN(RegistryHeader, region_rows_offset, 104);
  KVM_PIN(RegistryHeader, index_offset, 112);
  KVM_PIN(RegistryHeader, model_rows, 120);
  KVM_PIN(RegistryHeader, region_rows, 124);
  KVM_PIN(RegistryHeader, index_slots, 128);
  KVM_PIN(RegistryHeader, index_entries, 136);
  KVM_PIN(RegistryHeader, tags_offset, 144);
  KVM_PIN(RegistryHeader, state, 192);
  KVM_PIN(RegistryHeader, heartbeat_ns, 200);
  KVM_PIN(RegistryHeader, live_entries, 208);
  KVM_PIN(RegistryHeader, live_regions, 216);
  KVM_PIN(RegistryHeader, live_models, 224);
  KVM_PIN(RegistryHeader, region_changes, 232);
  KVM_PIN(RegistryHeader, index_moves, 256);
  KVM_PIN(RegistryHeader, counters, 320);
  KVM_PIN(RegistryHeader, marks_offset, 448);
  KVM_PIN(RegistryHeader, mark_buckets, 456);
  KVM_PIN(RegistryHeader, live_marks, 464);
  KVM_PIN_SIZE(RegistryHeader, 512);
}

TEST_CASE("Layout: the counters", "[unit]") {
  KVM_PIN(Counters, published, 0);
  KVM_PIN(Counters, replaced, 8);
  KVM_PIN(Counters, retracted, 16);
  KVM_PIN(Counters, swept, 24);
  KVM_PIN(Counters, reaped, 32);
  KVM_PIN(Counters, refused_full, 40);
  KVM_PIN(Counters, refused_replicas, 48);
  KVM_PIN(Counters, refused_stale, 56);
  KVM_PIN(Counters, evicted, 64);
  KVM_PIN(Counters, reserved, 72);
  KVM_PIN_SIZE(Counters, 128);
}

TEST_CASE("Layout: a row of the marks", "[unit]") {
  KVM_PIN(MarkInfo, key_lo, 0);
  KVM_PIN(MarkInfo, key_hi, 8);
  KVM_PIN(MarkInfo, client_id, 16);
  KVM_PIN(MarkInfo, marked_ns, 24);
  KVM_PIN(MarkInfo, expires_ns, 32);
  KVM_PIN_SIZE(MarkInfo, 40);
  KVM_PIN_SIZE(MarkRow, 64);
  REQUIRE(kMarksPerBucket == 4);
  REQUIRE(MarkBucket({0, 0}, 2048) == 0);
  REQUIRE(MarkBucket({0, ~std::uint64_t{0}}, 2048) == 2047);
}

TEST_CASE("Layout: a row of the model table", "[unit]") {
  KVM_PIN(ModelInfo, state, 0);
  KVM_PIN(ModelInfo, spec_bytes, 4);
  KVM_PIN(ModelInfo, fingerprint, 8);
  KVM_PIN(ModelInfo, spec, 40);
  KVM_PIN_SIZE(ModelInfo, 2008);
  KVM_PIN_SIZE(ModelRow, 2048);
}

TEST_CASE("Layout: a row of the region table", "[unit]") {
  KVM_PIN(RegionInfo, state, 0);
  KVM_PIN(RegionInfo, region_epoch, 4);
  KVM_PIN(RegionInfo, model, 8);
  KVM_PIN(RegionInfo, handle_kind, 12);
  KVM_PIN(RegionInfo, block_count, 16);
  KVM_PIN(RegionInfo, segment_count, 20);
  KVM_PIN(RegionInfo, block_bytes, 24);
  KVM_PIN(RegionInfo, client_id, 32);
  KVM_PIN(RegionInfo, owner_pid, 40);
  KVM_PIN(RegionInfo, owner_uid, 44);
  KVM_PIN(RegionInfo, tp_rank, 48);
  KVM_PIN(RegionInfo, tp_size, 50);
  KVM_PIN(RegionInfo, pp_rank, 52);
  KVM_PIN(RegionInfo, pp_size, 54);
  KVM_PIN(RegionInfo, kv_group, 56);
  KVM_PIN(RegionInfo, reserved16, 58);
  KVM_PIN(RegionInfo, device_uuid, 64);
  KVM_PIN(RegionInfo, handle, 80);
  KVM_PIN(RegionInfo, live_entries, 144);
  KVM_PIN(RegionInfo, registered_ms, 152);
  KVM_PIN(RegionInfo, name, 160);
  KVM_PIN_SIZE(RegionInfo, 224);
  KVM_PIN_SIZE(RegionRow, 256);
}

TEST_CASE("Layout: an index slot is one cache line", "[unit]") {
  KVM_PIN(IndexSlot, version, 0);
  KVM_PIN(IndexSlot, region_epoch, 4);
  KVM_PIN(IndexSlot, key_lo, 8);
  KVM_PIN(IndexSlot, key_hi, 16);
  KVM_PIN(IndexSlot, generation, 24);
  KVM_PIN(IndexSlot, parent_lo, 32);
  KVM_PIN(IndexSlot, region, 40);
  KVM_PIN(IndexSlot, block, 44);
  KVM_PIN(IndexSlot, depth, 48);
  KVM_PIN(IndexSlot, flags, 52);
  KVM_PIN(IndexSlot, published_s, 56);
  KVM_PIN(IndexSlot, reserved, 60);
  KVM_PIN_SIZE(IndexSlot, 64);
  REQUIRE(alignof(IndexSlot) == 64);
}

TEST_CASE("Layout: a publish record and a generation header", "[unit]") {
  KVM_PIN(PublishRecord, key, 0);
  KVM_PIN(PublishRecord, parent_lo, 16);
  KVM_PIN(PublishRecord, generation, 24);
  KVM_PIN(PublishRecord, block, 32);
  KVM_PIN(PublishRecord, depth, 36);
  KVM_PIN_SIZE(PublishRecord, 40);
  KVM_PIN(GenerationHeader, magic, 0);
  KVM_PIN(GenerationHeader, layout_version, 8);
  KVM_PIN(GenerationHeader, block_count, 12);
  KVM_PIN_SIZE(GenerationHeader, 64);
  REQUIRE(GenerationTableBytes(1000) == 64 + 8000);
}

TEST_CASE("Layout: error codes are wire values", "[unit]") {
  REQUIRE(static_cast<int>(Errc::kInvalidArgument) == 1);
  REQUIRE(static_cast<int>(Errc::kUnavailable) == 2);
  REQUIRE(static_cast<int>(Errc::kDeadlineExceeded) == 3);
  REQUIRE(static_cast<int>(Errc::kProtocol) == 4);
  REQUIRE(static_cast<int>(Errc::kVersionMismatch) == 5);
  REQUIRE(static_cast<int>(Errc::kPermissionDenied) == 6);
  REQUIRE(static_cast<int>(Errc::kNotFound) == 7);
  REQUIRE(static_cast<int>(Errc::kAlreadyExists) == 8);
  REQUIRE(static_cast<int>(Errc::kResourceExhausted) == 9);
  REQUIRE(static_cast<int>(Errc::kModelMismatch) == 10);
  REQUIRE(static_cast<int>(Errc::kBadGeometry) == 11);
  REQUIRE(static_cast<int>(Errc::kStale) == 12);
  REQUIRE(static_cast<int>(Errc::kUnsupported) == 13);
  REQUIRE(static_cast<int>(Errc::kSystem) == 14);
  REQUIRE(static_cast<int>(Errc::kCancelled) == 15);
}

TEST_CASE("Layout: the home slot of a key is inside the table and spreads by the high half", "[unit]") {
  for (const std::uint64_t slots : {std::uint64_t{1}, std::uint64_t{3}, std::uint64_t{1} << 33, ~std::uint64_t{0}}) {
    CHECK(Home({0, 0}, slots) == 0);
    CHECK(Home({0, ~std::uint64_t{0}}, slots) == slots - 1);
    CHECK(Home({~std::uint64_t{0}, 0}, slots) == 0);
  }
  CHECK(Home({0, std::uint64_t{1} << 63}, 1000) == 500);
}

TEST_CASE("Layout: every error code has a name of its own", "[unit]") {
  std::vector<std::string_view> names;
  for (int code = 1; code <= 15; ++code) names.push_back(ErrcName(static_cast<Errc>(code)));
  std::sort(names.begin(), names.end());
  CHECK(std::adjacent_find(names.begin(), names.end()) == names.end());
  CHECK(std::find(names.begin(), names.end(), "unknown") == names.end());
  CHECK(ErrcName(static_cast<Errc>(999)) == "unknown");
}
