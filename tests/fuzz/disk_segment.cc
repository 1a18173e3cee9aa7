// Files of the disk cache, as a crash, a failing disk or another program may leave them: headers
// alone, and whole segments that a cache is opened on.
//
// Input: u8 options, then pages. With option 1 each page that begins with a mark of ours gets its
// checksum, so that what is behind the checksum is reached. With option 2 the first page is
// replaced by a good header of the segment.
#include <stdlib.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "client/mesh/disk/disk_cache.h"
#include "client/mesh/memory/checksum.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {
namespace {

constexpr const char* kDomain = "uid:1000";
constexpr std::uint64_t kSegment = 1;
constexpr std::size_t kMostPages = 64;

// Of one input; this user's alone.
class Directory {
 public:
  Directory() : path_((std::filesystem::temp_directory_path() / "kvmd-fuzz-XXXXXX").string()) {
    if (::mkdtemp(path_.data()) == nullptr) Broken("a directory can be made");
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
};

std::span<std::byte> PageOf(std::vector<std::byte>& file, std::size_t page) {
  return std::span(file).subspan(page * mesh::kDiskPage, mesh::kDiskPage);
}

void SealAgain(std::span<std::byte> page) {
  if (std::memcmp(page.data(), "KVMD", 4) != 0) return;
  const std::uint64_t checksum = mesh::BlockChecksum(page.subspan(16));
  std::memcpy(page.data() + 8, &checksum, sizeof(checksum));
}

void CheckHeaders(std::span<const std::byte> page) {
  std::vector<std::byte> again(mesh::kDiskPage);
  if (const auto header = mesh::DecodeSegmentHeader(page)) {
    mesh::Encode(*header, again);
    const auto second = mesh::DecodeSegmentHeader(again);
    if (!second || second->segment != header->segment || second->domain != header->domain)
      Broken("a segment's header is the same when written again");
  }
  if (const auto header = mesh::DecodeRecordHeader(page)) {
    if (header->shape.block_bytes == 0 || !header->shape.shard.Validate()) Broken("a record that is taken has a block of a possible shard");
    mesh::Encode(*header, again);
    const auto second = mesh::DecodeRecordHeader(again);
    if (!second || second->key != header->key || second->shape != header->shape || second->checksum != header->checksum)
      Broken("a record's header is the same when written again");
  }
}

void CheckCache(const std::string& path) {
  mesh::DiskOptions options;
  options.path = path;
  options.limit_bytes = std::uint64_t{1} << 20;
  options.policy = policy::PolicyKind::kLru;
  options.io = mesh::IoKind::kPlain;
  auto cache = mesh::DiskCache::Open(options);
  if (!cache || !(*cache)->Recover(kDomain)) return;
  for (const mesh::KeyChange& each : (*cache)->table().TakeChanges(true).keys) {
    const auto place = (*cache)->table().Find(each.key);
    if (!place) Broken("a key that is told has a place");
    // Of its own shape the reader knows more than this does.
    mesh::BlockShape shape;
    shape.block_bytes = place->block.block_bytes;
    std::vector<std::byte> bytes(shape.block_bytes);
    mesh::DiskRead read{each.key, bytes.data()};
    (*cache)->Read(shape, {&read, 1});
    if (read.end == mesh::DiskReadEnd::kGood && mesh::BlockChecksum(bytes) != read.checksum) Broken("a good read has its checksum");
  }
}

std::vector<std::byte> Segment(std::size_t records) {
  std::vector<std::byte> file(mesh::kDiskPage);
  mesh::Encode(mesh::SegmentHeader{kSegment, kDomain}, file);
  for (std::size_t i = 0; i < records; ++i) {
    const std::uint64_t at = file.size();
    const std::uint64_t block_bytes = 100 + 5000 * i;
    file.resize(at + mesh::RecordBytes(block_bytes));
    const std::span<std::byte> block = std::span(file).subspan(at + mesh::kDiskPage, block_bytes);
    std::fill(block.begin(), block.end(), static_cast<std::byte>(i + 1));
    mesh::RecordHeader header;
    header.segment = kSegment;
    header.offset = at;
    header.key = {i + 1, i + 100};
    header.parent_lo = i;
    header.depth = static_cast<std::uint32_t>(i);
    header.shape.block_bytes = block_bytes;
    header.checksum = mesh::BlockChecksum(block);
    mesh::Encode(header, std::span(file).subspan(at, mesh::kDiskPage));
  }
  return file;
}

}  // namespace

void DiskSegmentTarget(Bytes input) {
  Consumer consumer(input);
  const auto options = consumer.Take<std::uint8_t>();
  const Bytes left = consumer.left().first(std::min(consumer.left().size(), kMostPages * mesh::kDiskPage));
  std::vector<std::byte> file(left.size());
  std::transform(left.begin(), left.end(), file.begin(), [](std::uint8_t byte) { return std::byte{byte}; });
  const std::size_t pages = file.size() / mesh::kDiskPage;
  if ((options & 2) != 0 && pages > 0) mesh::Encode(mesh::SegmentHeader{kSegment, kDomain}, PageOf(file, 0));
  for (std::size_t page = 0; page < pages; ++page) {
    if ((options & 1) != 0) SealAgain(PageOf(file, page));
    CheckHeaders(PageOf(file, page));
  }
  const Directory directory;
  const std::string path = directory.path() + "/segment-0000000000000001";
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(file.data()), static_cast<std::streamsize>(file.size()));
  std::filesystem::permissions(path, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  CheckCache(directory.path());
}

std::vector<std::string> DiskSegmentSeeds() {
  std::vector<std::string> out;
  for (const char options : {'\0', '\1', '\3'}) {
    for (const std::size_t records : {std::size_t{0}, std::size_t{1}, std::size_t{3}}) {
      const std::vector<std::byte> file = Segment(records);
      out.push_back(options + std::string(reinterpret_cast<const char*>(file.data()), file.size()));
    }
  }
  return out;
}

}  // namespace kvm::fuzz
