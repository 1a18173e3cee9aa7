#include "cuda/copy_plan.h"

#include <algorithm>
#include <string>

namespace kvm {
namespace {

// Walks the chunks of block 0 in order.
class ChunkCursor {
 public:
  explicit ChunkCursor(const Geometry& geometry) : geometry_(geometry) {}

  bool Done() const { return part_ == geometry_.parts.size(); }
  const GeometryPart& part() const { return geometry_.parts[part_]; }
  std::uint64_t offset() const { return part().offset + repeat_ * part().repeat_stride + used_; }
  std::uint64_t left() const { return part().chunk_bytes - used_; }
  void Advance(std::uint64_t bytes) {
    used_ += bytes;
    if (used_ < part().chunk_bytes) return;
    used_ = 0;
    if (++repeat_ < part().count) return;
    repeat_ = 0;
    ++part_;
  }

 private:
  const Geometry& geometry_;
  std::size_t part_ = 0;
  std::uint32_t repeat_ = 0;
  std::uint64_t used_ = 0;
};

bool Continues(const CopyPiece& last, const CopyPiece& next) {
  return last.source_segment == next.source_segment && last.destination_segment == next.destination_segment &&
         last.source_stride == next.source_stride && last.destination_stride == next.destination_stride &&
         last.source_offset + last.bytes == next.source_offset && last.destination_offset + last.bytes == next.destination_offset;
}

}  // namespace

Result<CopyPlan> MakeCopyPlan(const Geometry& source, const Geometry& destination) {
  if (source.BlockBytes() != destination.BlockBytes()) {
    return MakeError(Errc::kBadGeometry, "blocks differ in size: source " + std::to_string(source.BlockBytes()) + " bytes, destination " +
                                             std::to_string(destination.BlockBytes()));
  }
  CopyPlan plan;
  ChunkCursor from(source), to(destination);
  while (!from.Done() && !to.Done()) {
    const std::uint64_t bytes = std::min(from.left(), to.left());
    const CopyPiece piece{from.part().segment, to.part().segment,      from.offset(), from.part().block_stride,
                          to.offset(),         to.part().block_stride, bytes};
    if (!plan.empty() && Continues(plan.back(), piece)) {
      plan.back().bytes += bytes;
    } else {
      plan.push_back(piece);
    }
    from.Advance(bytes);
    to.Advance(bytes);
  }
  return plan;
}

}  // namespace kvm
