#include "client/mesh/disk/disk_writer.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "client/mesh/memory/checksum.h"

namespace kvm::mesh {
namespace {

constexpr std::uint64_t kLeastSegment = std::uint64_t{64} << 10, kMostSegment = std::uint64_t{1} << 30;
constexpr std::uint64_t kSegments = 64;  // that a cache is divided into, roughly
// Of what blocks may take, so that a segment that is removed frees an eighth on average, and mostly
// far more: blocks that are written at one time leave at one time.
constexpr std::uint64_t kBudgetEighths = 7;
constexpr std::uint64_t kLeastBlocks = 16;                     // of the largest size
constexpr std::uint64_t kBatchBytes = std::uint64_t{8} << 20;  // that are written at once

std::uint64_t SegmentBytes(std::uint64_t limit_bytes) {
  return WholePages(std::clamp(limit_bytes / kSegments, kLeastSegment, kMostSegment));
}

}  // namespace

// Records of one batch, in the forms that O_DIRECT takes.
struct DiskWriter::Pending {
  explicit Pending(std::size_t blocks) : headers(blocks * kDiskPage), padded(blocks), requests(blocks), placed(blocks) {}

  AlignedBuffer headers;
  std::vector<AlignedBuffer> padded;  // blocks that are no whole pages, or lie anywhere
  std::vector<IoRequest> requests;
  std::vector<DiskBlock> placed;
};

DiskWriter::DiskWriter(DiskTable& table, DiskHealth& health, const DiskDirectory& directory, WritePace& pace, std::uint64_t limit_bytes)
    : table_(table),
      health_(health),
      directory_(directory),
      pace_(pace),
      limit_bytes_(limit_bytes),
      segment_bytes_(SegmentBytes(limit_bytes)),
      budget_bytes_((limit_bytes - 3 * segment_bytes_) / 8 * kBudgetEighths) {}

void DiskWriter::Start(std::string domain, std::unique_ptr<BlockIo> io, const RecoveredFiles& recovered) {
  domain_ = std::move(domain);
  io_ = std::move(io);
  for (const std::uint64_t segment : recovered.useless) directory_.Remove(segment);
  for (const RecoveredSegment& segment : recovered.segments) {
    next_segment_ = segment.file->segment() + 1;
    if (segment.blocks.empty() && &segment != &recovered.segments.back()) {
      directory_.Remove(segment.file->segment());
      continue;
    }
    // What a crash has left behind the last record, or what was reserved there.
    segment.file->Shorten(segment.end);
    table_.AddSegment(segment.file, segment.end);
    table_.Insert(segment.blocks);
  }
  if (!recovered.segments.empty()) {
    const RecoveredSegment& newest = recovered.segments.back();
    open_ = newest.file;
    end_ = newest.end;
    reserved_ = std::max(segment_bytes_, end_);
    table_.ResizeSegment(open_->segment(), reserved_);
  }
  // The bound may have been larger.
  table_.EvictFor(0, budget_bytes_);
  while (table_.file_bytes() > limit_bytes_ && CleanOne()) continue;
}

Status DiskWriter::Append(std::span<const NewDiskBlock> blocks) {
  std::vector<Source> sources;
  for (const NewDiskBlock& block : blocks) {
    if (RecordBytes(block.shape.block_bytes) > limit_bytes_ / kLeastBlocks) {
      return MakeError(Errc::kUnsupported, "--disk-bytes: " + std::to_string(limit_bytes_) + " are too few for blocks of " +
                                               std::to_string(block.shape.block_bytes) + " bytes");
    }
    if (!table_.Contains(block.key))
      sources.push_back({{0, 0, block.key, block.parent_lo, block.depth, block.shape, block.checksum}, block.bytes});
  }
  const Status written = Write(sources, false);
  if (!written && written.error().code != Errc::kCancelled) health_.WriteFailed(written.error());
  if (written && !sources.empty()) health_.Worked(true);
  return written;
}

Status DiskWriter::Write(std::span<const Source> blocks, bool moving) {
  while (!blocks.empty()) {
    const std::uint64_t first = RecordBytes(blocks.front().header.shape.block_bytes);
    if (!moving) table_.EvictFor(first, budget_bytes_);
    if (Status room = MakeRoom(first, moving); !room) return room;
    std::size_t count = 0;
    std::uint64_t bytes = 0;
    while (count < blocks.size() && count < BlockIo::kDepth) {
      const std::uint64_t next = RecordBytes(blocks[count].header.shape.block_bytes);
      if (end_ + bytes + next > reserved_ || (count > 0 && bytes + next > kBatchBytes)) break;
      bytes += next;
      ++count;
    }
    if (!moving) table_.EvictFor(bytes, budget_bytes_);
    if (!pace_.Wait(bytes)) return MakeError(Errc::kCancelled, "the process ends");
    if (Status written = WriteBatch(blocks.first(count), moving); !written) return written;
    blocks = blocks.subspan(count);
  }
  return {};
}

Status DiskWriter::WriteBatch(std::span<const Source> blocks, bool moving) {
  Pending pending(blocks.size());
  std::uint64_t at = end_;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    RecordHeader header = blocks[i].header;
    header.segment = open_->segment();
    header.offset = at;
    Encode(header, pending.headers.page(i));
    const std::uint64_t bytes = header.shape.block_bytes;
    const std::byte* from = blocks[i].bytes;
    if (bytes % kDiskPage != 0 || (open_->direct() && !IsAligned(from))) {
      pending.padded[i] = AlignedBuffer(bytes);
      std::memcpy(pending.padded[i].data(), from, bytes);
      from = pending.padded[i].data();
    }
    IoRequest& request = pending.requests[i];
    request.write = true;
    request.fd = open_->fd();
    request.offset = at;
    request.parts[0] = {pending.headers.page(i).data(), kDiskPage};
    request.parts[1] = {const_cast<std::byte*>(from), WholePages(bytes)};
    pending.placed[i] = {header.key, header.parent_lo, header.depth, bytes, header.segment, at};
    at += RecordBytes(bytes);
  }
  io_->Run(pending.requests, [](std::size_t) {});
  const auto failed =
      std::find_if(pending.requests.begin(), pending.requests.end(), [](const IoRequest& request) { return request.error != 0; });
  const auto good = static_cast<std::size_t>(failed - pending.requests.begin());
  const std::uint64_t before = end_;
  end_ = good == blocks.size() ? at : pending.placed[good].offset;
  table_.Insert(std::span(pending.placed).first(good));
  table_.CountWritten(good, end_ - before, moving);
  if (failed == pending.requests.end()) return {};
  open_->Shorten(end_);
  return SystemError("write " + SegmentFile::Name(open_->segment()), failed->error);
}

Status DiskWriter::MakeRoom(std::uint64_t bytes, bool moving) {
  const std::uint64_t wanted = std::max(segment_bytes_, kDiskPage + bytes);
  // One segment stays free for blocks that are moved.
  const std::uint64_t kept = moving ? 0 : wanted;
  for (;;) {
    if (open_ && end_ + bytes <= reserved_) return {};
    CloseSegment();
    if (table_.file_bytes() + wanted + kept <= limit_bytes_) return OpenSegment(wanted);
    if (moving) return MakeError(Errc::kResourceExhausted, "no room for blocks that are moved");
    if (Status cleaned = CleanOne(); !cleaned) return cleaned;
  }
}

Status DiskWriter::OpenSegment(std::uint64_t bytes) {
  for (;;) {
    Result<std::shared_ptr<SegmentFile>> file = SegmentFile::Create(directory_.fd(), {next_segment_, domain_}, bytes);
    ++next_segment_;
    // A file that is not ours, which was refused before
    if (!file && file.error().code == Errc::kAlreadyExists) continue;
    if (!file) return file.error();
    try {
      table_.AddSegment(*file, bytes);
    } catch (const std::bad_alloc&) {
      // A file that the table does not know would take room beside the bound.
      directory_.Remove((*file)->segment());
      throw;
    }
    open_ = std::move(*file);
    end_ = kDiskPage;
    reserved_ = bytes;
    return {};
  }
}

void DiskWriter::CloseSegment() {
  if (!open_) return;
  open_->Shorten(end_);
  table_.ResizeSegment(open_->segment(), end_);
  open_.reset();
}

Status DiskWriter::CleanOne() {
  const std::shared_ptr<SegmentFile> from = table_.EmptiestSegment();
  if (!from) return MakeError(Errc::kResourceExhausted, "no segment of the disk cache can be freed");
  if (from == open_) CloseSegment();
  const std::vector<DiskBlock> blocks = table_.BlocksOf(from->segment());
  // Without room for them, in the bound or on the disk, they leave with their segment.
  Status moved = MoveBlocks(*from, blocks);
  const bool no_room = !moved && (moved.error().code == Errc::kResourceExhausted || IsFullDisk(moved.error()));
  if (!moved && !no_room) return moved;
  // The file first: what fails here for lack of memory is done again, and leaves no file behind.
  directory_.Remove(from->segment());
  table_.RemoveSegment(from->segment());
  return {};
}

Status DiskWriter::MoveBlocks(const SegmentFile& from, std::span<const DiskBlock> blocks) {
  while (!blocks.empty()) {
    std::size_t count = 0;
    std::uint64_t bytes = 0;
    while (count < blocks.size() && count < BlockIo::kDepth &&
           (count == 0 || bytes + RecordBytes(blocks[count].block_bytes) <= kBatchBytes))
      bytes += RecordBytes(blocks[count++].block_bytes);
    const AlignedBuffer memory(bytes);
    std::vector<IoRequest> requests(count);
    std::uint64_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      requests[i].fd = from.fd();
      requests[i].offset = blocks[i].offset;
      requests[i].parts[0] = {memory.data() + at, RecordBytes(blocks[i].block_bytes)};
      at += RecordBytes(blocks[i].block_bytes);
    }
    io_->Run(requests, [](std::size_t) {});
    std::vector<Source> sources;
    at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::byte* record = memory.data() + at;
      at += RecordBytes(blocks[i].block_bytes);
      Result<RecordHeader> header = DecodeRecordHeader({record, kDiskPage});
      const bool good = requests[i].error == 0 && header && header->key == blocks[i].key &&
                        header->shape.block_bytes == blocks[i].block_bytes &&
                        BlockChecksum({record + kDiskPage, blocks[i].block_bytes}) == header->checksum;
      if (good) {
        sources.push_back({*header, record + kDiskPage});
        continue;
      }
      table_.CountBad();
      table_.Erase(blocks[i]);
      health_.BadRecord(SegmentFile::Name(from.segment()) + " at " + std::to_string(blocks[i].offset));
    }
    if (Status written = Write(sources, true); !written) return written;
    blocks = blocks.subspan(count);
  }
  return {};
}

}  // namespace kvm::mesh
