#include "proto/shm/sealed_memory.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <utility>

#include "proto/base/memory_room.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace kvm {
namespace {

namespace ipc = boost::interprocess;

constexpr int kSizeSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// The interface that boost::interprocess::mapped_region needs in order to map a descriptor that it
// did not open.
class MemoryMappable {
 public:
  explicit MemoryMappable(int fd) : fd_(fd) {}
  ipc::mapping_handle_t get_mapping_handle() const { return {fd_, false}; }

 private:
  int fd_;
};

constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

// Reserves address space for `size` bytes that begins at a multiple of a huge page, to be used with
// MAP_FIXED. Null if there is none.
void* ReserveAligned(std::size_t size) {
  const std::size_t reserved = size + kHugePageBytes;
  void* base = ::mmap(nullptr, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(base);
  const std::size_t head = (kHugePageBytes - reinterpret_cast<std::uintptr_t>(base) % kHugePageBytes) % kHugePageBytes;
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const std::size_t end = (head + size + page - 1) / page * page;
  if (head > 0) ::munmap(begin, head);
  if (reserved > end) ::munmap(begin + end, reserved - end);
  return begin + head;
}

std::size_t PageBytesOf(int fd) {
  struct statfs info {};
  if (::fstatfs(fd, &info) == 0 && info.f_type == HUGETLBFS_MAGIC) return static_cast<std::size_t>(info.f_bsize);
  return static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

Result<ipc::mapped_region> Map(int fd, ipc::mode_t mode, std::size_t size, HugePages huge) {
  // The kernel maps a huge page only where address and file offset are aligned alike.
  void* address = huge != HugePages::kNever && size >= kHugePageBytes ? ReserveAligned(size) : nullptr;
  try {
    ipc::mapped_region mapping(MemoryMappable(fd), mode, 0, size, address,
                               address != nullptr ? ipc::map_options_t(MAP_FIXED) : ipc::default_map_options);
    // If the kernel refuses, accesses are slower, and nothing else changes.
    if (address != nullptr) ::madvise(address, size, MADV_HUGEPAGE);
    if (mode == ipc::read_write && ::madvise(mapping.get_address(), mapping.get_size(), MADV_DONTFORK) != 0)
      return SystemError("keep a mapping from forked processes");
    return mapping;
  } catch (const ipc::interprocess_exception& e) {
    if (address != nullptr) ::munmap(address, size);
    return SystemError("map " + std::to_string(size) + " bytes of shared memory", e.get_native_error());
  }
}

// Lookups in a large table are bound by address translation. This asks for huge pages now,
// independent of the system-wide setting for shared memory. Kernels before 6.1 and machines short
// of memory refuse.
void MakeHuge(const OwnedMemory& memory) noexcept {
  if (memory.size() >= kHugePageBytes) ::madvise(memory.data(), memory.size(), MADV_COLLAPSE);
}

}  // namespace

Result<OwnedMemory> OwnedMemory::Create(const std::string& name, std::size_t size_bytes, HugePages huge) {
  Result<OwnedMemory> memory = Reserve(name, size_bytes, huge);
  while (memory && !memory->whole()) {
    if (Status allocated = memory->AllocateSome(size_bytes); !allocated) return allocated.error();
  }
  if (memory && huge == HugePages::kTry) MakeHuge(*memory);
  return memory;
}

Result<OwnedMemory> OwnedMemory::Reserve(const std::string& name, std::size_t size_bytes, HugePages huge) {
  if (size_bytes == 0) return MakeError(Errc::kInvalidArgument, "shared memory " + name + ": size is 0");
  if (Status fits = CheckMemoryRoom(size_bytes, name); !fits) return fits.error();
  OwnedMemory memory;
  memory.fd_.Reset(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!memory.fd_) return SystemError("memfd_create " + name);
  const int fd = memory.fd_.get();
  const auto size = static_cast<off_t>(size_bytes);
  if (::fchmod(fd, 0400) != 0) return SystemError("fchmod " + name);
  if (::ftruncate(fd, size) != 0) return SystemError("ftruncate " + name);
  Result<ipc::mapped_region> mapping = Map(fd, ipc::read_write, size_bytes, huge);
  if (!mapping) return mapping.error();
  memory.mapping_ = std::move(*mapping);
  memory.name_ = name;
  if (::fcntl(fd, F_ADD_SEALS, kSizeSeals | F_SEAL_FUTURE_WRITE) != 0) return SystemError("seal " + name);
  return memory;
}

Status OwnedMemory::AllocateSome(std::size_t most_bytes) {
  const Result<std::uint64_t> until = AllocatePart(fd_.get(), allocated_, size(), most_bytes, name_);
  if (!until) return until.error();
  allocated_ = *until;
  return {};
}

Result<OwnedMemory> OwnedMemory::Take(UniqueFd fd, std::size_t size_bytes, HugePages huge) {
  const std::string what = "granted memory of " + std::to_string(size_bytes) + " bytes";
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kSizeSeals) != kSizeSeals) return MakeError(Errc::kPermissionDenied, what + ": not sealed against resizing");
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return SystemError("fstat " + what);
  if (static_cast<std::size_t>(info.st_size) != size_bytes)
    return MakeError(Errc::kInvalidArgument, what + ": it has " + std::to_string(info.st_size));
  if ((::fcntl(fd.get(), F_GETFL) & O_ACCMODE) != O_RDWR) return MakeError(Errc::kPermissionDenied, what + ": the descriptor is read-only");
  // Fallocate over memory that is allocated already takes as long as allocating it, so it is left
  // out then.
  const bool allocated = static_cast<std::size_t>(info.st_blocks) * 512 >= size_bytes;
  if (!allocated) {
    if (Status made = AllocateFile(fd.get(), 0, size_bytes, what); !made) return made.error();
  }
  Result<ipc::mapped_region> mapping = Map(fd.get(), ipc::read_write, size_bytes, huge);
  if (!mapping) return mapping.error();
  OwnedMemory memory;
  memory.fd_ = std::move(fd);
  memory.mapping_ = std::move(*mapping);
  memory.allocated_ = size_bytes;
  if (huge == HugePages::kTry) MakeHuge(memory);
  return memory;
}

// A guard must not outlive its mapping.
OwnedMemory& OwnedMemory::operator=(OwnedMemory&& other) noexcept {
  guard_ = MemoryGuard();
  fd_ = std::move(other.fd_);
  name_ = std::move(other.name_);
  allocated_ = other.allocated_;
  mapping_ = std::move(other.mapping_);
  guard_ = std::move(other.guard_);
  return *this;
}

void OwnedMemory::Guard() { guard_ = MemoryGuard(data(), size(), PageBytesOf(fd_.get()), MemoryGuard::Access::kWrite); }

Result<std::size_t> CheckSealed(int fd, std::size_t min_size_bytes) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return MakeError(Errc::kPermissionDenied, "shared memory: not a memfd");
  if ((seals & kSizeSeals) != kSizeSeals) return MakeError(Errc::kPermissionDenied, "shared memory: not sealed against resizing");
  struct stat info {};
  if (::fstat(fd, &info) != 0) return SystemError("fstat shared memory");
  const auto size = static_cast<std::size_t>(info.st_size);
  if (size == 0 || size < min_size_bytes) {
    return MakeError(Errc::kInvalidArgument,
                     "shared memory: " + std::to_string(size) + " bytes, at least " + std::to_string(min_size_bytes) + " needed");
  }
  if (static_cast<std::size_t>(info.st_blocks) * 512 < size) {
    return MakeError(Errc::kInvalidArgument, "shared memory: not fully allocated");
  }
  return size;
}

Result<MappedMemory> MappedMemory::Attach(int fd, std::size_t min_size_bytes, HugePages huge) {
  Result<std::size_t> size = CheckSealed(fd, min_size_bytes);
  if (!size) return size.error();
  Result<ipc::mapped_region> mapping = Map(fd, ipc::read_only, *size, huge);
  if (!mapping) return mapping.error();
  MappedMemory memory;
  memory.mapping_ = std::move(*mapping);
  memory.guard_ = MemoryGuard(memory.data(), *size, PageBytesOf(fd), MemoryGuard::Access::kRead);
  return memory;
}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  guard_ = MemoryGuard();
  mapping_ = std::move(other.mapping_);
  guard_ = std::move(other.guard_);
  return *this;
}

bool IsWhole(int fd) noexcept {
  struct stat info {};
  return ::fstat(fd, &info) == 0 && static_cast<std::size_t>(info.st_blocks) * 512 >= static_cast<std::size_t>(info.st_size);
}

bool OnOrdinaryPages(int fd) noexcept {
  struct statfs info {};
  return ::fstatfs(fd, &info) == 0 && info.f_type == TMPFS_MAGIC;
}

Result<UniqueFd> CreateGrantable(const std::string& name, std::size_t size_bytes, PagePool pool) {
  if (size_bytes == 0) return MakeError(Errc::kInvalidArgument, "shared memory " + name + ": size is 0");
  // The client allocates it, so that its control group is charged.
  if (pool == PagePool::kOrdinary) {
    if (Status fits = CheckFileSize(size_bytes, name); !fits) return fits.error();
  }
  const unsigned pages = pool == PagePool::kReservedHuge ? MFD_HUGETLB | MFD_HUGE_2MB : 0;
  UniqueFd fd(::memfd_create(name.c_str(), MFD_CLOEXEC | MFD_ALLOW_SEALING | pages));
  if (!fd) return SystemError("memfd_create " + name);
  // Opened once more: the kernel counts those who may write a file by what was opened, not by what
  // memfd_create made (MayBeWritten).
  const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
  fd = UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return SystemError("open " + name);
  if (::fchmod(fd.get(), 0400) != 0) return SystemError("fchmod " + name);
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) return SystemError("ftruncate " + name);
  if (::fcntl(fd.get(), F_ADD_SEALS, kSizeSeals) != 0) return SystemError("seal " + name);
  return fd;
}

Result<UniqueFd> ReopenReadOnly(int fd) {
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  UniqueFd reopened(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reopened) return SystemError("open shared memory read-only");
  return reopened;
}

bool MayBeWritten(int fd) noexcept {
  if (::fcntl(fd, F_SETLEASE, F_RDLCK) != 0) return errno == EAGAIN;
  static_cast<void>(::fcntl(fd, F_SETLEASE, F_UNLCK));
  return false;
}

Writers WritersOf(int fd) noexcept {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return Writers::kAnybody;
  if ((seals & F_SEAL_FUTURE_WRITE) != 0) return Writers::kNobody;
  struct stat info {};
  const int flags = ::fcntl(fd, F_GETFL);
  const bool writable = flags >= 0 && (flags & O_ACCMODE) == O_RDWR;
  const bool ours = ::fstat(fd, &info) == 0 && info.st_uid == ::geteuid() && (info.st_mode & 0777) == 0400;
  return writable && ours && (seals & F_SEAL_SEAL) != 0 ? Writers::kHolders : Writers::kAnybody;
}

}  // namespace kvm
