#include "client/mesh/directory/peer_summary.h"

#include <algorithm>
#include <bit>
#include <boost/endian/conversion.hpp>

namespace kvm::mesh {

Status PeerSummary::Apply(const SummaryImage& image) {
  if (image.epoch == 0) return MakeError(Errc::kProtocol, "a summary without an epoch");
  const auto* at = reinterpret_cast<const unsigned char*>(image.payload.data());
  if (image.snapshot) {
    if (!std::has_single_bit(image.buckets) || image.buckets > CuckooFilter::kMaxBuckets || image.payload.size() != image.buckets * 8) {
      return MakeError(Errc::kProtocol,
                       "a summary of " + std::to_string(image.buckets) + " buckets in " + std::to_string(image.payload.size()) + " bytes");
    }
    CuckooFilter filter(image.buckets);
    for (std::uint64_t bucket = 0; bucket < image.buckets; ++bucket, at += 8) filter.SetBucket(bucket, boost::endian::load_little_u64(at));
    filter_ = std::move(filter);
  } else {
    if (image.epoch != epoch_ || image.buckets != filter_.buckets().size() || image.sequence < sequence_)
      return MakeError(Errc::kStale, "a delta of another summary");
    if (image.payload.size() % 12 != 0) return MakeError(Errc::kProtocol, "a delta with half a bucket");
    const auto* const end = at + image.payload.size();
    for (const auto* each = at; each != end; each += 12)
      if (boost::endian::load_little_u32(each) >= image.buckets) return MakeError(Errc::kProtocol, "a delta of a bucket that there is not");
    for (; at != end; at += 12) filter_.SetBucket(boost::endian::load_little_u32(at), boost::endian::load_little_u64(at + 4));
  }
  epoch_ = image.epoch;
  sequence_ = image.sequence;
  keys_ = image.keys;
  return {};
}

std::size_t PeerSummary::MatchedDepth(std::span<const BlockKey> keys, std::size_t known) const noexcept {
  return mesh::MatchedDepth(keys, known, [this](const BlockKey& key) { return Contains(key); });
}

MatchedDepths MatchBoth(const PeerSummary& memory, const PeerSummary& disk, std::span<const BlockKey> keys, std::size_t known) noexcept {
  MatchedDepths out;
  out.memory = out.all = memory.MatchedDepth(keys, known);
  if (disk.epoch() == 0 || out.memory == keys.size()) return out;
  const auto either = [&](const BlockKey& key) { return memory.Contains(key) || disk.Contains(key); };
  out.all = std::max(out.memory, MatchedDepth(keys, known, either));
  return out;
}

}  // namespace kvm::mesh
