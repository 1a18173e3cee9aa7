#include "client/mesh/disk/disk_reader.h"

#include <cstring>
#include <exception>
#include <vector>

#include "client/mesh/memory/checksum.h"
#include "proto/base/fault_switch.h"

namespace kvm::mesh {

// One read under way.
struct DiskReader::Job {
  DiskPlace place;
  DiskRead* read = nullptr;
  AlignedBuffer header;
  AlignedBuffer bounce;  // the block, where O_DIRECT can't reach the caller's memory; else empty

  std::byte* block() const noexcept { return bounce.size() > 0 ? bounce.data() : read->into; }
};

namespace {

bool NeedsBounce(const SegmentFile& file, const std::byte* into, std::uint64_t bytes) {
  return file.direct() && (bytes % kDiskPage != 0 || !IsAligned(into));
}

}  // namespace

DiskReadEnd DiskReader::Check(Job& job, const BlockShape& shape) const {
  const Result<RecordHeader> header = DecodeRecordHeader(job.header.page());
  const DiskBlock& block = job.place.block;
  if (!header || header->segment != block.segment || header->offset != block.offset || header->key != block.key) return DiskReadEnd::kBad;
  // Equal keys mean equal shapes; a record that claims otherwise is not to be believed.
  if (header->shape != shape || header->key != job.read->key) return DiskReadEnd::kBad;
  job.read->checksum = header->checksum;
  const bool unchecked = KVM_FAULT_SWITCH(blocks_without_checksum);
  return unchecked || BlockChecksum({job.block(), shape.block_bytes}) == header->checksum ? DiskReadEnd::kGood : DiskReadEnd::kBad;
}

void DiskReader::Finish(Job& job, const IoRequest& request, const BlockShape& shape) {
  const DiskBlock& block = job.place.block;
  const std::string where = SegmentFile::Name(block.segment) + " at " + std::to_string(block.offset);
  // A file that is shorter than it was is damage, and no failure of the disk.
  if (request.error != 0 && request.error != ENODATA) {
    job.read->end = DiskReadEnd::kFailed;
    table_.CountFailedRead();
    table_.Erase(block);
    health_.ReadFailed(SystemError("read " + where, request.error));
    return;
  }
  job.read->end = request.error != 0 ? DiskReadEnd::kBad : Check(job, shape);
  if (job.read->end == DiskReadEnd::kGood) {
    if (job.bounce.size() > 0) std::memcpy(job.read->into, job.bounce.data(), shape.block_bytes);
    table_.CountRead(shape.block_bytes);
    health_.Worked(false);
    return;
  }
  table_.CountBad();
  table_.Erase(block);
  health_.BadRecord(where);
}

void DiskReader::Read(const BlockShape& shape, std::span<DiskRead> reads) {
  std::vector<Job> jobs;
  std::vector<IoRequest> requests;
  for (DiskRead& read : reads) {
    read.end = DiskReadEnd::kNotHere;
    std::optional<DiskPlace> place = table_.Find(read.key);
    if (!place || place->block.block_bytes != shape.block_bytes) continue;
    Job& job = jobs.emplace_back(Job{std::move(*place), &read, AlignedBuffer(kDiskPage), {}});
    const bool bounce = NeedsBounce(*job.place.file, read.into, shape.block_bytes);
    if (bounce) job.bounce = AlignedBuffer(shape.block_bytes);
    IoRequest& request = requests.emplace_back();
    request.fd = job.place.file->fd();
    request.offset = job.place.block.offset;
    request.parts[0] = {job.header.data(), kDiskPage};
    request.parts[1] = {job.block(), bounce ? job.bounce.size() : shape.block_bytes};
  }
  // Each block is compared while others are read. An exception must not leave Run, since the kernel
  // still writes to the memory of the others.
  std::exception_ptr failed;
  io_->Run(requests, [&](std::size_t i) {
    try {
      Finish(jobs[i], requests[i], shape);
    } catch (const std::exception&) {
      jobs[i].read->end = DiskReadEnd::kFailed;
      failed = std::current_exception();
    }
  });
  if (failed) std::rethrow_exception(failed);
}

}  // namespace kvm::mesh
