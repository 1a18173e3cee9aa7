#include "client/mesh/disk/record.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "client/mesh/memory/checksum.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::uint64_t kSegmentMark = 0x3147455344'4D564BULL;  // "KVMDSEG1"
constexpr std::uint64_t kRecordMark = 0x3143455244'4D564BULL;   // "KVMDREC1"
constexpr std::size_t kChecksumAt = 8;
constexpr std::size_t kBodyAt = 16;  // the checksum covers the page from here on

// Writes, or reads, fields one after another.
class Fields {
 public:
  explicit Fields(Page page) noexcept : page_(page) {}

  template <class T>
  void Put(const T& value) noexcept {
    std::memcpy(page_.data() + at_, &value, sizeof(T));
    at_ += sizeof(T);
  }

 private:
  Page page_;
  std::size_t at_ = kBodyAt;
};

class ReadFields {
 public:
  explicit ReadFields(ConstPage page) noexcept : page_(page) {}

  template <class T>
  void Take(T& value) noexcept {
    std::memcpy(&value, page_.data() + at_, sizeof(T));
    at_ += sizeof(T);
  }
  const char* rest() const noexcept { return reinterpret_cast<const char*>(page_.data() + at_); }

 private:
  ConstPage page_;
  std::size_t at_ = kBodyAt;
};

template <class T>
T At(ConstPage page, std::size_t at) noexcept {
  T value;
  std::memcpy(&value, page.data() + at, sizeof(T));
  return value;
}

void Seal(Page page, std::uint64_t mark) noexcept {
  std::memcpy(page.data(), &mark, sizeof(mark));
  const std::uint64_t checksum = BlockChecksum(page.subspan(kBodyAt));
  std::memcpy(page.data() + kChecksumAt, &checksum, sizeof(checksum));
}

Status CheckSeal(ConstPage page, std::uint64_t mark) {
  if (page.size() != kDiskPage || At<std::uint64_t>(page, 0) != mark) return MakeError(Errc::kProtocol, "no header");
  if (At<std::uint64_t>(page, kChecksumAt) != BlockChecksum(page.subspan(kBodyAt))) return MakeError(Errc::kProtocol, "a damaged header");
  return {};
}

}  // namespace

void Encode(const SegmentHeader& header, Page page) noexcept {
  std::fill(page.begin(), page.end(), std::byte{0});
  Fields fields(page);
  fields.Put(kDiskVersion);
  fields.Put(static_cast<std::uint32_t>(header.domain.size()));
  fields.Put(header.segment);
  std::memcpy(page.data() + kBodyAt + 16, header.domain.data(), header.domain.size());
  Seal(page, kSegmentMark);
}

void Encode(const RecordHeader& header, Page page) noexcept {
  std::fill(page.begin(), page.end(), std::byte{0});
  Fields fields(page);
  fields.Put(header.segment);
  fields.Put(header.offset);
  fields.Put(header.key.lo);
  fields.Put(header.key.hi);
  fields.Put(header.parent_lo);
  fields.Put(header.shape.block_bytes);
  fields.Put(header.checksum);
  fields.Put(header.shape.fingerprint.bytes);
  fields.Put(header.depth);
  for (const std::uint16_t part : {header.shape.shard.tp_rank, header.shape.shard.tp_size, header.shape.shard.pp_rank,
                                   header.shape.shard.pp_size, header.shape.shard.kv_group})
    fields.Put(part);
  Seal(page, kRecordMark);
}

Result<SegmentHeader> DecodeSegmentHeader(ConstPage page) {
  if (Status good = CheckSeal(page, kSegmentMark); !good) return good.error();
  SegmentHeader out;
  std::uint32_t version = 0, domain_bytes = 0;
  ReadFields fields(page);
  fields.Take(version);
  if (version != kDiskVersion) return MakeError(Errc::kVersionMismatch, "version " + std::to_string(version) + " wrote it");
  fields.Take(domain_bytes);
  fields.Take(out.segment);
  if (domain_bytes > kMaxDiskDomain) return MakeError(Errc::kProtocol, "a damaged header");
  out.domain.assign(fields.rest(), domain_bytes);
  return out;
}

Result<RecordHeader> DecodeRecordHeader(ConstPage page) {
  if (Status good = CheckSeal(page, kRecordMark); !good) return good.error();
  RecordHeader out;
  ReadFields fields(page);
  fields.Take(out.segment);
  fields.Take(out.offset);
  fields.Take(out.key.lo);
  fields.Take(out.key.hi);
  fields.Take(out.parent_lo);
  fields.Take(out.shape.block_bytes);
  fields.Take(out.checksum);
  fields.Take(out.shape.fingerprint.bytes);
  fields.Take(out.depth);
  for (std::uint16_t* part :
       {&out.shape.shard.tp_rank, &out.shape.shard.tp_size, &out.shape.shard.pp_rank, &out.shape.shard.pp_size, &out.shape.shard.kv_group})
    fields.Take(*part);
  if (out.shape.block_bytes == 0 || out.shape.block_bytes > kMaxPayloadBytes || !out.shape.shard.Validate())
    return MakeError(Errc::kProtocol, "a block of " + std::to_string(out.shape.block_bytes) + " bytes");
  return out;
}

}  // namespace kvm::mesh
