// DiskRecovery: which records the disk cache's files have, read from the files alone.
//
// There is no list of them, and no file says whether the last process ended in an orderly way. A
// segment counts up to the first page that is no header of a record of this place, or whose record
// is longer than the file. What a crash can have left unfinished, the latest records of the newest
// segment, is read and compared with its checksums; all others are compared when they are used.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "client/mesh/disk/block_io.h"
#include "client/mesh/disk/disk_directory.h"
#include "client/mesh/disk/disk_index.h"
#include "client/mesh/disk/segment_file.h"

namespace kvm::mesh {

struct RecoveredSegment {
  std::shared_ptr<SegmentFile> file;
  std::uint64_t size = 0;  // of the file
  std::uint64_t end = 0;   // of its last record
  std::vector<DiskBlock> blocks;
};

struct RecoveredFiles {
  std::vector<RecoveredSegment> segments;  // the oldest first
  // Segments that no process can use: damaged, or of another version
  std::vector<std::uint64_t> useless;
  std::vector<std::string> refused;  // files that are not this user's, for people
};

// kPermissionDenied: the files are of another domain than `domain`. kSystem: the directory, or a
// file, can't be read.
[[nodiscard]] Result<RecoveredFiles> RecoverFiles(const DiskDirectory& directory, const std::string& domain, BlockIo& io);

}  // namespace kvm::mesh
