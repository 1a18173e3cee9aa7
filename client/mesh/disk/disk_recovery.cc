#include "client/mesh/disk/disk_recovery.h"

#include <algorithm>
#include <numeric>

#include "client/mesh/memory/checksum.h"

namespace kvm::mesh {
namespace {

constexpr std::size_t kAtOnce = 64;  // segments whose headers are read at the same time

// The files, opened, without their records.
Result<RecoveredFiles> OpenFiles(const DiskDirectory& directory, const std::string& domain) {
  const Result<std::vector<std::uint64_t>> segments = directory.Segments();
  if (!segments) return segments.error();
  RecoveredFiles out;
  for (const std::uint64_t segment : *segments) {
    Result<std::shared_ptr<SegmentFile>> file = SegmentFile::Open(directory.fd(), segment);
    if (!file && file.error().code == Errc::kPermissionDenied) {
      out.refused.push_back(file.error().message);
    } else if (!file && file.error().code == Errc::kSystem) {
      return file.error();
    } else if (!file) {
      out.useless.push_back(segment);
    } else if ((*file)->domain() != domain) {
      return MakeError(Errc::kPermissionDenied, "its files are of domain " + (*file)->domain() + ", and this is " + domain +
                                                    "; each domain needs a --disk-path of its own");
    } else {
      const Result<std::uint64_t> size = (*file)->size();
      if (!size) return size.error();
      out.segments.push_back({std::move(*file), *size, kDiskPage, {}});
    }
  }
  return out;
}

// Takes the record whose header is `page`, if it is one. False: the segment ends here.
bool TakeRecord(RecoveredSegment& segment, ConstPage page) {
  const Result<RecordHeader> header = DecodeRecordHeader(page);
  if (!header || header->segment != segment.file->segment() || header->offset != segment.end) return false;
  const std::uint64_t bytes = RecordBytes(header->shape.block_bytes);
  if (segment.end + bytes > segment.size) return false;
  segment.blocks.push_back({header->key, header->parent_lo, header->depth, header->shape.block_bytes, header->segment, header->offset});
  segment.end += bytes;
  return true;
}

// The next header of each of these segments, until none has another one. An error of one read ends
// that segment only.
void ReadHeaders(std::span<RecoveredSegment> segments, BlockIo& io) {
  const AlignedBuffer pages(segments.size() * kDiskPage);
  std::vector<std::size_t> open(segments.size());
  std::iota(open.begin(), open.end(), 0);
  while (!open.empty()) {
    std::vector<IoRequest> requests;
    for (const std::size_t i : open) {
      IoRequest& request = requests.emplace_back();
      request.fd = segments[i].file->fd();
      request.offset = segments[i].end;
      request.parts[0] = {pages.page(i).data(), kDiskPage};
    }
    io.Run(requests, [](std::size_t) {});
    std::vector<std::size_t> still;
    for (std::size_t r = 0; r < open.size(); ++r)
      if (requests[r].error == 0 && TakeRecord(segments[open[r]], pages.page(open[r]))) still.push_back(open[r]);
    open = std::move(still);
  }
}

bool IsWhole(const RecoveredSegment& segment, const DiskBlock& block, BlockIo& io) {
  const AlignedBuffer record(RecordBytes(block.block_bytes));
  IoRequest request;
  request.fd = segment.file->fd();
  request.offset = block.offset;
  request.parts[0] = {record.data(), record.size()};
  io.Run(std::span(&request, 1), [](std::size_t) {});
  const Result<RecordHeader> header = DecodeRecordHeader(record.page());
  return request.error == 0 && header && BlockChecksum({record.data() + kDiskPage, block.block_bytes}) == header->checksum;
}

// Ends the segment before the first of its latest records that is not whole.
void CheckLatest(RecoveredSegment& segment, BlockIo& io) {
  const std::size_t first = segment.blocks.size() - std::min<std::size_t>(segment.blocks.size(), BlockIo::kDepth);
  for (std::size_t i = first; i < segment.blocks.size(); ++i) {
    if (IsWhole(segment, segment.blocks[i], io)) continue;
    segment.end = segment.blocks[i].offset;
    segment.blocks.resize(i);
  }
}

}  // namespace

Result<RecoveredFiles> RecoverFiles(const DiskDirectory& directory, const std::string& domain, BlockIo& io) {
  Result<RecoveredFiles> out = OpenFiles(directory, domain);
  if (!out) return out.error();
  const std::span<RecoveredSegment> segments = out->segments;
  for (std::size_t first = 0; first < segments.size(); first += kAtOnce)
    ReadHeaders(segments.subspan(first, std::min(kAtOnce, segments.size() - first)), io);
  if (!segments.empty()) CheckLatest(segments.back(), io);
  return out;
}

}  // namespace kvm::mesh
