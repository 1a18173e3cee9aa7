#include "proto/base/memory_room.h"

#include <fcntl.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>

namespace kvm {
namespace {

constexpr std::uint64_t kMostSpare = std::uint64_t{128} << 20;
constexpr std::uint64_t kSparePart = 16;
// An allocation takes an eighth of what is left at a time, so that up to eight processes that
// allocate at the same time see each other's memory.
constexpr std::uint64_t kPartOfRoom = 8;
constexpr std::uint64_t kLeastPart = std::uint64_t{2} << 20, kMostPart = std::uint64_t{256} << 20;

std::uint64_t Left(const MemoryLevel& level) noexcept {
  const std::uint64_t spare = SpareBytes(level.limit_bytes);
  return level.available_bytes > spare ? level.available_bytes - spare : 0;
}

std::string Amount(std::uint64_t bytes) {
  constexpr std::uint64_t kMib = std::uint64_t{1} << 20;
  return bytes < kMib ? std::to_string(bytes) + " bytes" : std::to_string(bytes / kMib) + " MiB";
}

Error Exhausted(std::string message) { return Error{Errc::kResourceExhausted, std::move(message), ENOMEM}; }

Error TooLittle(std::uint64_t bytes, const std::string& what, const MemoryLevel& level) {
  return Exhausted("no memory for " + what + ": " + Amount(bytes) + " are needed, " + Amount(level.available_bytes) + " of the " +
                   Amount(level.limit_bytes) + " of " + level.name + " are left, " + Amount(SpareBytes(level.limit_bytes)) +
                   " of which stay unused");
}

}  // namespace

std::uint64_t SpareBytes(std::uint64_t limit_bytes) noexcept { return std::min(kMostSpare, limit_bytes / kSparePart); }

Result<MemoryRoom> MemoryRoom::Read() {
  const Result<InstalledMemory> installed = ReadInstalledMemory();
  if (!installed) return installed.error();
  return ReadFrom({}, *installed);
}

Result<MemoryRoom> MemoryRoom::ReadFrom(const std::string& root, const InstalledMemory& installed) {
  Result<std::vector<MemoryLevel>> groups = ReadControlGroups(root);
  if (!groups) return groups.error();
  MemoryRoom room;
  room.levels_ = std::move(*groups);
  room.levels_.push_back(ReadMachineMemory(installed, root));
  return room;
}

const MemoryLevel& MemoryRoom::smallest() const noexcept {
  return *std::min_element(levels_.begin(), levels_.end(),
                           [](const MemoryLevel& a, const MemoryLevel& b) { return a.limit_bytes < b.limit_bytes; });
}

const MemoryLevel& MemoryRoom::fullest() const noexcept {
  return *std::min_element(levels_.begin(), levels_.end(), [](const MemoryLevel& a, const MemoryLevel& b) { return Left(a) < Left(b); });
}

std::uint64_t MemoryRoom::bytes() const noexcept { return Left(fullest()); }

Status MemoryRoom::Check(std::uint64_t bytes, const std::string& what) const {
  if (Status fits = CheckFileSize(bytes, what); !fits) return fits;
  const MemoryLevel& level = fullest();
  return bytes <= Left(level) ? Status() : TooLittle(bytes, what, level);
}

Status CheckMemoryRoom(std::uint64_t bytes, const std::string& what) {
  const Result<MemoryRoom> room = MemoryRoom::Read();
  if (!room) return MakeError(room.error().code, "no memory for " + what + ": " + room.error().message);
  return room->Check(bytes, what);
}

Status CheckFileSize(std::uint64_t bytes, const std::string& what) {
  // The kernel answers a write beyond this limit with a signal instead of an error.
  rlimit most{};
  if (::getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur != RLIM_INFINITY && bytes > most.rlim_cur) {
    return Exhausted("no memory for " + what + ": " + Amount(bytes) + " are needed, RLIMIT_FSIZE (ulimit -f) allows " +
                     Amount(most.rlim_cur));
  }
  const Result<InstalledMemory> installed = ReadInstalledMemory();
  if (!installed) return installed.error();
  if (bytes <= installed->bytes) return {};
  return Exhausted("no memory for " + what + ": " + Amount(bytes) + " are needed, this machine has " + Amount(installed->bytes));
}

Status CheckMachineRoom(std::uint64_t bytes, const std::string& what) {
  if (Status fits = CheckFileSize(bytes, what); !fits) return fits;
  const Result<InstalledMemory> installed = ReadInstalledMemory();
  if (!installed) return installed.error();
  const MemoryLevel machine = ReadMachineMemory(*installed);
  return bytes <= Left(machine) ? Status() : TooLittle(bytes, what, machine);
}

Status AllocateFile(int fd, std::uint64_t begin, std::uint64_t end, const std::string& what) {
  while (begin < end) {
    const Result<std::uint64_t> next = AllocatePart(fd, begin, end, kMostPart, what);
    if (!next) return next.error();
    begin = *next;
  }
  return {};
}

Result<std::uint64_t> AllocatePart(int fd, std::uint64_t begin, std::uint64_t end, std::uint64_t most, const std::string& what) {
  const Result<MemoryRoom> room = MemoryRoom::Read();
  if (!room) return MakeError(room.error().code, "no memory for " + what + ": " + room.error().message);
  if (Status fits = room->Check(end - begin, what); !fits) return fits.error();
  const std::uint64_t bytes = std::min({end - begin, most, std::clamp(room->bytes() / kPartOfRoom, kLeastPart, kMostPart)});
  while (::fallocate(fd, 0, static_cast<off_t>(begin), static_cast<off_t>(bytes)) != 0) {
    if (errno == EINTR) continue;
    Error error = SystemError("allocate " + std::to_string(end - begin) + " bytes for " + what);
    if (error.sys_errno == ENOSPC || error.sys_errno == ENOMEM) error.code = Errc::kResourceExhausted;
    return error;
  }
  return begin + bytes;
}

}  // namespace kvm
