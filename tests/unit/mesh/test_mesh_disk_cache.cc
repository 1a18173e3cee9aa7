// The disk cache: what was written is read again, also after damage and restarts, within its bound.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>

#include "tests/catch.h"
#include "tests/support/mesh/disk_blocks.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/temp_dir.h"

namespace {

using namespace kvm;
using mesh::DiskCache;
using mesh::DiskOptions;
using mesh::IoKind;
using mesh::RecordBytes;
using test::DiskBlocks;
using test::DiskReadCheck;
using test::OpenDisk;
using test::ReadDisk;
using test::TempDir;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

DiskOptions Options(const TempDir& dir, IoKind io = IoKind::kAuto, std::uint64_t limit = 4 * kMiB) {
  DiskOptions out;
  out.path = dir / "disk";
  out.limit_bytes = limit;
  out.write_bytes_per_s = 0;
  out.io = io;
  out.pause = std::chrono::milliseconds(0);
  return out;
}

std::vector<std::filesystem::path> Segments(const TempDir& dir) {
  std::vector<std::filesystem::path> out;
  for (const auto& each : std::filesystem::directory_iterator(dir / "disk"))
    if (each.path().filename() != "lock") out.push_back(each.path());
  std::sort(out.begin(), out.end());
  return out;
}

std::uint64_t BytesOnDisk(const TempDir& dir) {
  std::uint64_t sum = 0;
  for (const auto& each : Segments(dir)) {
    struct stat info {};
    REQUIRE(::stat(each.c_str(), &info) == 0);
    sum += std::max<std::uint64_t>(static_cast<std::uint64_t>(info.st_size), static_cast<std::uint64_t>(info.st_blocks) * 512);
  }
  return sum;
}

void FlipByte(const std::filesystem::path& path, std::uint64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(static_cast<std::streamoff>(at));
  char byte = 0;
  file.get(byte);
  file.seekp(static_cast<std::streamoff>(at));
  file.put(static_cast<char>(byte ^ 0x10));
  REQUIRE(file.good());
}

}  // namespace

TEST_CASE("Disk cache: what is appended is read byte for byte, by each way to read, aligned or not", "[unit]") {
  for (const IoKind io : test::IoKinds()) {
    for (const std::uint64_t bytes : {std::uint64_t{4096}, std::uint64_t{65536}, std::uint64_t{1}, std::uint64_t{5000}}) {
      INFO(mesh::IoKindName(io) << ", blocks of " << bytes);
      const TempDir dir;
      const auto cache = OpenDisk(Options(dir, io));
      CHECK(cache->io_name() == mesh::IoKindName(io));
      const DiskBlocks blocks(1, 20, bytes);
      KVM_REQUIRE_OK(cache->Append(blocks.blocks));
      for (const bool misaligned : {false, true}) {
        const DiskReadCheck read = ReadDisk(*cache, blocks.keys, bytes, misaligned);
        CHECK(read.good == 20);
        CHECK(read.wrong == 0);
      }
      CHECK(cache->table().LeadingBlocks(blocks.keys) == 20);
      CHECK(cache->table().figures().read_blocks == 40);
      CHECK(ReadDisk(*cache, {test::DiskKey(2, 0)}, bytes).not_here == 1);
    }
  }
}

TEST_CASE("Disk cache: blocks in memory that O_DIRECT does not take are written all the same", "[unit]") {
  for (const IoKind io : test::IoKinds()) {
    const TempDir dir;
    const auto cache = OpenDisk(Options(dir, io));
    const BlockKey key = test::DiskKey(1, 0);
    const mesh::AlignedBuffer memory(2 * 4096);
    const std::span<std::byte> bytes(memory.data() + 3, 4096);
    test::FillDiskBlock(key, bytes);
    const mesh::NewDiskBlock block{key, 0, 0, test::DiskShape(4096), bytes.data(), mesh::BlockChecksum(bytes)};
    KVM_REQUIRE_OK(cache->Append({&block, 1}));
    const DiskReadCheck read = ReadDisk(*cache, {key}, 4096);
    CHECK(read.good == 1);
    CHECK(read.wrong == 0);
  }
}

TEST_CASE("Disk cache: a cache that is opened again has the blocks of the one before, and goes on behind them", "[unit]") {
  for (const IoKind io : test::IoKinds()) {
    const TempDir dir;
    const DiskBlocks first(1, 30, 4096), second(2, 5, 4096);
    { KVM_REQUIRE_OK(OpenDisk(Options(dir, io))->Append(first.blocks)); }
    const std::size_t files = Segments(dir).size();
    { KVM_REQUIRE_OK(OpenDisk(Options(dir, io))->Append(second.blocks)); }
    const auto cache = OpenDisk(Options(dir, io));
    CHECK(Segments(dir).size() <= files + 1);
    CHECK(ReadDisk(*cache, first.keys, 4096).good == 30);
    CHECK(ReadDisk(*cache, second.keys, 4096).good == 5);
    // A block that is there is not written again.
    KVM_REQUIRE_OK(cache->Append(first.blocks));
    CHECK(cache->table().figures().written_blocks == 0);
  }
}

TEST_CASE("Disk cache: a file that is cut off at any byte of its last record has all the others", "[unit]") {
  const TempDir dir;
  DiskOptions options = Options(dir, IoKind::kPlain);
  options.policy = policy::PolicyKind::kLru;  // takes least time to make
  const DiskBlocks blocks(1, 3, 600);
  { KVM_REQUIRE_OK(OpenDisk(options)->Append(blocks.blocks)); }
  REQUIRE(Segments(dir).size() == 1);
  const std::filesystem::path path = Segments(dir)[0];
  const std::uint64_t whole = 4096 + 3 * RecordBytes(600), last = whole - RecordBytes(600);
  REQUIRE(std::filesystem::file_size(path) == whole);
  std::filesystem::copy_file(path, dir / "whole");
  // Each opens the cache once; sanitizers make that slow.
  constexpr std::uint64_t kStep = test::kSanitized ? 41 : 1;
  for (std::uint64_t cut = last; cut < whole; cut += kStep) {
    std::filesystem::copy_file(dir / "whole", path, std::filesystem::copy_options::overwrite_existing);
    std::filesystem::resize_file(path, cut);
    const auto cache = OpenDisk(options);
    if (cache->table().LeadingBlocks(blocks.keys) != 2 || std::filesystem::file_size(path) != last) {
      INFO("cut at " << cut);
      CHECK(cache->table().LeadingBlocks(blocks.keys) == 2);
      CHECK(std::filesystem::file_size(path) == last);
      break;
    }
  }
  // The place is written again.
  const auto cache = OpenDisk(options);
  KVM_REQUIRE_OK(cache->Append(blocks.blocks));
  const DiskReadCheck read = ReadDisk(*cache, blocks.keys, 600);
  CHECK(read.good == 3);
  CHECK(read.wrong == 0);
}

TEST_CASE("Disk cache: a byte that changes anywhere in the latest record is noticed when the cache is opened", "[unit]") {
  const TempDir dir;
  const DiskBlocks blocks(1, 2, 600);
  { KVM_REQUIRE_OK(OpenDisk(Options(dir))->Append(blocks.blocks)); }
  const std::filesystem::path path = Segments(dir)[0];
  std::filesystem::copy_file(path, dir / "whole");
  const std::uint64_t last = 4096 + RecordBytes(600);
  constexpr std::uint64_t kStep = test::kSanitized ? 101 : 7;
  for (std::uint64_t at = last; at < last + 4096 + 600; at += kStep) {
    std::filesystem::copy_file(dir / "whole", path, std::filesystem::copy_options::overwrite_existing);
    FlipByte(path, at);
    const auto cache = OpenDisk(Options(dir));
    if (cache->table().LeadingBlocks(blocks.keys) == 1) continue;
    INFO("byte " << at);
    CHECK(cache->table().LeadingBlocks(blocks.keys) == 1);
    break;
  }
}

TEST_CASE("Disk cache: a byte that changes in a record is noticed when the record is read, and the record is dropped", "[unit]") {
  for (const IoKind io : test::IoKinds()) {
    for (const std::uint64_t at : {std::uint64_t{4096 + 20}, std::uint64_t{4096 + 4096 + 100}, std::uint64_t{4096 + 4096 + 4095}}) {
      INFO(mesh::IoKindName(io) << ", byte " << at);
      const TempDir dir;
      const auto cache = OpenDisk(Options(dir, io));
      const DiskBlocks blocks(1, 3, 4096);
      KVM_REQUIRE_OK(cache->Append(blocks.blocks));
      FlipByte(Segments(dir)[0], at);
      const DiskReadCheck read = ReadDisk(*cache, blocks.keys, 4096);
      CHECK(read.bad == 1);
      CHECK(read.good == 2);
      CHECK(read.wrong == 0);
      CHECK(cache->table().figures().bad_records == 1);
      CHECK(ReadDisk(*cache, blocks.keys, 4096).not_here == 1);
      // It can be written again.
      KVM_REQUIRE_OK(cache->Append(blocks.blocks));
      CHECK(ReadDisk(*cache, blocks.keys, 4096).good == 3);
    }
  }
}

TEST_CASE("Disk cache: a record of which only the first part was written is not there, wherever the part ends", "[unit]") {
  constexpr std::uint64_t kBytes = 600, kLast = 4096 + 2 * RecordBytes(kBytes);
  const TempDir dir;
  const DiskBlocks blocks(1, 3, kBytes);
  { KVM_REQUIRE_OK(OpenDisk(Options(dir))->Append(blocks.blocks)); }
  const std::filesystem::path path = Segments(dir)[0];
  std::filesystem::copy_file(path, dir / "whole");
  // In the mark, the header's checksum, the segment, the key, the block's checksum, the header's
  // rest; nothing of the block, its first byte, half of it, all but its last byte. After a loss of
  // power the rest is zeros, or what another file had there.
  for (const std::uint64_t part : {0, 4, 8, 12, 16, 20, 32, 40, 70, 100, 4095, 4096, 4097, 4096 + 300, 4096 + 599}) {
    for (const char rest : {'\0', '\xa5'}) {
      INFO(part << " bytes, then " << int{rest});
      std::filesystem::copy_file(dir / "whole", path, std::filesystem::copy_options::overwrite_existing);
      const auto tear = [&] {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(kLast + part));
        file << std::string(RecordBytes(kBytes) - part, rest) << std::flush;
        REQUIRE(file.good());
      };
      {
        // While it is open: noticed by the read.
        const auto cache = OpenDisk(Options(dir));
        REQUIRE(cache->table().LeadingBlocks(blocks.keys) == 3);
        tear();
        const DiskReadCheck read = ReadDisk(*cache, blocks.keys, kBytes);
        CHECK(read.good == 2);
        CHECK(read.bad == 1);
        CHECK(read.wrong == 0);
      }
      // By the next process: noticed when the cache is opened, and the place is written again.
      const auto cache = OpenDisk(Options(dir));
      CHECK(cache->table().LeadingBlocks(blocks.keys) == 2);
      CHECK(std::filesystem::file_size(path) == kLast);
      KVM_REQUIRE_OK(cache->Append(blocks.blocks));
      CHECK(ReadDisk(*cache, blocks.keys, kBytes).good == 3);
    }
  }
  // What pads a block to whole pages is not part of it.
  FlipByte(path, kLast + 4096 + kBytes);
  const auto cache = OpenDisk(Options(dir));
  CHECK(ReadDisk(*cache, blocks.keys, kBytes).good == 3);
}

TEST_CASE("Disk cache: a record whose file has been cut off meanwhile is a bad one, and not a failing disk", "[unit]") {
  for (const IoKind io : test::IoKinds()) {
    const TempDir dir;
    const auto cache = OpenDisk(Options(dir, io));
    const DiskBlocks blocks(1, 3, 4096);
    KVM_REQUIRE_OK(cache->Append(blocks.blocks));
    std::filesystem::resize_file(Segments(dir)[0], 4096 + 2 * RecordBytes(4096) + 5000);
    const DiskReadCheck read = ReadDisk(*cache, blocks.keys, 4096);
    CHECK(read.good == 2);
    CHECK(read.bad == 1);
    CHECK(cache->health().reason().empty());
  }
}

TEST_CASE("Disk cache: blocks of another shape than the record says are not read under its key", "[unit]") {
  const TempDir dir;
  const auto cache = OpenDisk(Options(dir));
  const DiskBlocks blocks(1, 1, 4096);
  KVM_REQUIRE_OK(cache->Append(blocks.blocks));
  mesh::BlockShape other = blocks.shape;
  other.fingerprint.bytes[0] ^= 1;
  const mesh::AlignedBuffer memory(8192);
  mesh::DiskRead read{blocks.keys[0], memory.data()};
  SECTION("another length") {
    other = test::DiskShape(8192);
    cache->Read(other, {&read, 1});
    CHECK(read.end == mesh::DiskReadEnd::kNotHere);
  }
  SECTION("another model") {
    cache->Read(other, {&read, 1});
    CHECK(read.end == mesh::DiskReadEnd::kBad);
  }
}

TEST_CASE("Disk cache: files never have more bytes than the bound, and the blocks that are left are right", "[unit]") {
  for (const IoKind io : test::IoKinds()) {
    for (const policy::PolicyKind kind : policy::kAllPolicies) {
      INFO(mesh::IoKindName(io) << ", " << policy::PolicyName(kind));
      const TempDir dir;
      DiskOptions options = Options(dir, io, 1 * kMiB);
      options.policy = kind;
      const auto cache = OpenDisk(options);
      std::vector<BlockKey> all;
      for (std::uint64_t prompt = 0; prompt < 60; ++prompt) {
        const DiskBlocks blocks(prompt, 11, 4096);
        KVM_REQUIRE_OK(cache->Append(blocks.blocks));
        // Every third prompt is asked for again and again.
        for (std::uint64_t again = 0; again < prompt; again += 3) cache->table().Use(DiskBlocks(again, 11, 4096).keys);
        all.insert(all.end(), blocks.keys.begin(), blocks.keys.end());
        REQUIRE(BytesOnDisk(dir) <= options.limit_bytes);
        REQUIRE(cache->table().file_bytes() <= options.limit_bytes);
      }
      const mesh::DiskFigures figures = cache->table().figures();
      CHECK(figures.evicted_blocks > 0);
      CHECK(figures.blocks > 60);
      const DiskReadCheck read = ReadDisk(*cache, all, 4096);
      CHECK(read.good == figures.blocks);
      CHECK(read.wrong + read.bad + read.failed == 0);
    }
  }
}

TEST_CASE("Disk cache: prompts that are asked for stay when others leave, from their first block on", "[unit]") {
  for (const policy::PolicyKind kind : policy::kAllPolicies) {
    INFO(policy::PolicyName(kind));
    const TempDir dir;
    DiskOptions options = Options(dir, IoKind::kAuto, 1 * kMiB);
    options.policy = kind;
    const auto cache = OpenDisk(options);
    const DiskBlocks wanted(1000, 20, 4096);
    KVM_REQUIRE_OK(cache->Append(wanted.blocks));
    for (std::uint64_t prompt = 0; prompt < 60; ++prompt) {
      cache->table().Use(wanted.keys);
      KVM_REQUIRE_OK(cache->Append(DiskBlocks(prompt, 11, 4096).blocks));
    }
    CHECK(cache->table().LeadingBlocks(wanted.keys) == 20);
    CHECK(ReadDisk(*cache, wanted.keys, 4096).wrong == 0);
    // Segments with blocks that stay were removed as well, and those blocks written again.
    if (kind == policy::PolicyKind::kLru) CHECK(cache->table().figures().moved_blocks >= 20);
  }
}

TEST_CASE("Disk cache: of prompts that leave, the ends leave first, so that what stays can be used", "[unit]") {
  for (const policy::PolicyKind kind : {policy::PolicyKind::kLru, policy::PolicyKind::kHitDensity}) {
    INFO(policy::PolicyName(kind));
    const TempDir dir;
    DiskOptions options = Options(dir, IoKind::kAuto, 1 * kMiB);
    options.policy = kind;
    const auto cache = OpenDisk(options);
    std::vector<std::vector<BlockKey>> prompts;
    for (std::uint64_t prompt = 0; prompt < 30; ++prompt) {
      const DiskBlocks blocks(prompt, 12, 4096);
      // In parts, as a feed writes them.
      for (std::size_t first = 0; first < 12; first += 4) KVM_REQUIRE_OK(cache->Append(std::span(blocks.blocks).subspan(first, 4)));
      prompts.push_back(blocks.keys);
    }
    const std::size_t blocks = cache->table().figures().blocks;
    std::size_t reachable = 0;
    for (const auto& keys : prompts) reachable += cache->table().LeadingBlocks(keys);
    CHECK(blocks < 360);
    CHECK(reachable * 10 >= blocks * 9);
  }
}

TEST_CASE("Disk cache: a cache with a smaller bound than before drops what is too much", "[unit]") {
  const TempDir dir;
  const DiskBlocks blocks(1, 300, 4096);
  { KVM_REQUIRE_OK(OpenDisk(Options(dir, IoKind::kAuto, 8 * kMiB))->Append(blocks.blocks)); }
  REQUIRE(BytesOnDisk(dir) > 2 * kMiB);
  const auto cache = OpenDisk(Options(dir, IoKind::kAuto, 1 * kMiB));
  CHECK(BytesOnDisk(dir) <= 1 * kMiB);
  const DiskReadCheck read = ReadDisk(*cache, blocks.keys, 4096);
  CHECK(read.good == cache->table().figures().blocks);
  CHECK(read.good > 40);
  CHECK(read.wrong == 0);
  KVM_REQUIRE_OK(cache->Append(DiskBlocks(2, 30, 4096).blocks));
}

TEST_CASE("Disk cache: blocks that are too large for the bound are refused, and others are not", "[unit]") {
  const TempDir dir;
  const auto cache = OpenDisk(Options(dir, IoKind::kAuto, 1 * kMiB));
  KVM_CHECK_ERROR(cache->Append(DiskBlocks(1, 1, 65536).blocks), Errc::kUnsupported, "--disk-bytes");
  KVM_REQUIRE_OK(cache->Append(DiskBlocks(1, 40, 16384).blocks));
  CHECK(cache->health().reason().empty());
}

TEST_CASE("Disk cache: segments of another version, and damaged ones, are removed, and the others are used", "[unit]") {
  const TempDir dir;
  const DiskBlocks blocks(1, 60, 4096);  // several segments
  { KVM_REQUIRE_OK(OpenDisk(Options(dir))->Append(blocks.blocks)); }
  const std::vector<std::filesystem::path> segments = Segments(dir);
  REQUIRE(segments.size() >= 4);
  {  // as a later version would write it
    std::fstream file(segments[0], std::ios::in | std::ios::out | std::ios::binary);
    std::vector<std::byte> page(4096);
    file.read(reinterpret_cast<char*>(page.data()), 4096);
    page[16] = std::byte{2};
    const std::uint64_t checksum = mesh::BlockChecksum(std::span(page).subspan(16));
    std::memcpy(page.data() + 8, &checksum, 8);
    REQUIRE(mesh::DecodeSegmentHeader(page).error().code == Errc::kVersionMismatch);
    file.seekp(0);
    file.write(reinterpret_cast<const char*>(page.data()), 4096);
  }
  FlipByte(segments[1], 100);
  std::filesystem::resize_file(segments[2], 0);
  const auto cache = OpenDisk(Options(dir));
  const std::vector<std::filesystem::path> left = Segments(dir);
  for (std::size_t i = 0; i < 3; ++i) CHECK(std::find(left.begin(), left.end(), segments[i]) == left.end());
  const DiskReadCheck read = ReadDisk(*cache, blocks.keys, 4096);
  CHECK(read.good > 0);
  CHECK(read.good < 60);
  CHECK(read.wrong + read.bad == 0);
}

TEST_CASE("Disk cache: files of another domain are neither read nor removed", "[unit]") {
  const TempDir dir;
  { KVM_REQUIRE_OK(OpenDisk(Options(dir))->Append(DiskBlocks(1, 3, 4096).blocks)); }
  {
    const auto cache = DiskCache::Open(Options(dir));
    KVM_REQUIRE_OK(cache);
    KVM_CHECK_ERROR((*cache)->Recover("uid:1001"), Errc::kPermissionDenied, "of domain uid:1000");
    CHECK_FALSE((*cache)->recovered());
    CHECK_FALSE((*cache)->health().may_read());
    CHECK((*cache)->health().reason().find("uid:1000") != std::string::npos);
  }
  CHECK(OpenDisk(Options(dir))->table().figures().blocks == 3);
}

TEST_CASE("Disk cache: a symlink or another user's directory or file is refused, and nothing is written through it", "[unit]") {
  const TempDir dir;
  SECTION("the directory is a symlink") {
    std::filesystem::create_directory(dir / "elsewhere");
    std::filesystem::create_directory_symlink(dir / "elsewhere", dir / "disk");
    KVM_CHECK_ERROR(DiskCache::Open(Options(dir)), Errc::kPermissionDenied, "symlink");
    DiskOptions slash = Options(dir);
    slash.path += "/";
    KVM_CHECK_ERROR(DiskCache::Open(slash), Errc::kPermissionDenied, "symlink");
    CHECK(std::filesystem::is_empty(dir / "elsewhere"));
  }
  SECTION("others may write to the directory") {
    std::filesystem::create_directory(dir / "disk");
    REQUIRE(::chmod((dir / "disk").c_str(), 0770) == 0);
    KVM_CHECK_ERROR(DiskCache::Open(Options(dir)), Errc::kPermissionDenied, "chmod");
  }
  SECTION("another user's directory") {
    std::filesystem::create_directory(dir / "disk");
    if (::chown((dir / "disk").c_str(), 12345, 12345) != 0) return;  // needs root
    KVM_CHECK_ERROR(DiskCache::Open(Options(dir)), Errc::kPermissionDenied, "user 12345");
  }
  SECTION("a segment is a symlink, a fifo, or of another user") {
    {
      const auto cache = OpenDisk(Options(dir));
      KVM_REQUIRE_OK(cache->Append(DiskBlocks(1, 3, 4096).blocks));
    }
    const std::filesystem::path segment = Segments(dir)[0];
    std::filesystem::rename(segment, dir / "moved");
    std::filesystem::create_symlink(dir / "moved", segment);
    const std::filesystem::path fifo = dir / "disk/segment-0000000000000002";
    REQUIRE(::mkfifo(fifo.c_str(), 0600) == 0);
    const std::filesystem::path foreign = dir / "disk/segment-0000000000000003";
    std::filesystem::copy_file(dir / "moved", foreign);
    const bool root = ::chown(foreign.c_str(), 12345, 12345) == 0;
    const std::uint64_t before = std::filesystem::file_size(dir / "moved");
    const auto cache = OpenDisk(Options(dir));
    CHECK(cache->table().figures().blocks == 0);
    KVM_REQUIRE_OK(cache->Append(DiskBlocks(2, 3, 4096).blocks));
    CHECK(std::filesystem::file_size(dir / "moved") == before);
    CHECK(std::filesystem::is_symlink(segment));
    CHECK(std::filesystem::is_fifo(fifo));
    if (root) CHECK(std::filesystem::exists(foreign));
  }
}

TEST_CASE("Disk cache: the directory and its files are their owner's alone, and a second process is refused", "[unit]") {
  const TempDir dir;
  const auto cache = OpenDisk(Options(dir));
  KVM_REQUIRE_OK(cache->Append(DiskBlocks(1, 3, 4096).blocks));
  struct stat info {};
  REQUIRE(::stat((dir / "disk").c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0700);
  for (const auto& each : Segments(dir)) {
    REQUIRE(::stat(each.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
  }
  KVM_CHECK_ERROR(DiskCache::Open(Options(dir)), Errc::kAlreadyExists, "another process");
}

TEST_CASE("Disk cache: a disk that is full pauses writing with a reason, and is read all the same", "[unit]") {
  // In a child: the limit is the process's.
  const test::ChildEnd end = test::RunInChild([] {
    std::signal(SIGXFSZ, SIG_IGN);
    const TempDir dir;
    DiskOptions options = Options(dir);
    Result<std::unique_ptr<DiskCache>> cache = DiskCache::Open(options);
    if (!cache || !(*cache)->Recover(test::kDiskDomain)) return 1;
    const DiskBlocks blocks(1, 30, 4096);
    if (!(*cache)->Append(std::span(blocks.blocks).first(3))) return 2;
    const rlimit little{4096 + 4 * RecordBytes(4096), RLIM_INFINITY};
    if (::setrlimit(RLIMIT_FSIZE, &little) != 0) return 3;
    const Status full = (*cache)->Append(blocks.blocks);
    if (full || full.error().sys_errno != EFBIG) return 4;
    if ((*cache)->health().reason().find("File too large") == std::string::npos) return 5;
    const std::size_t kept = (*cache)->table().LeadingBlocks(blocks.keys);
    const DiskReadCheck read = ReadDisk(**cache, blocks.keys, 4096);
    if (kept < 3 || kept > 4 || read.good != kept || read.wrong != 0) return 6;
    const rlimit enough{RLIM_INFINITY, RLIM_INFINITY};
    if (::setrlimit(RLIMIT_FSIZE, &enough) != 0) return 7;
    if (!(*cache)->Append(blocks.blocks) || !(*cache)->health().reason().empty()) return 8;
    const DiskReadCheck all = ReadDisk(**cache, blocks.keys, 4096);
    return all.good == 30 && all.wrong == 0 ? 0 : 9;
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}
