#include "daemon/host_cache/slab_memory.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "daemon/host_cache/huge_pages.h"
#include "daemon/system/work_meter.h"
#include "proto/base/fault_point.h"
#include "proto/base/memory_room.h"
#include "proto/base/round_up.h"
#include "proto/shm/sealed_memory.h"

namespace kvm::daemon {
namespace {

constexpr std::uint64_t kSliceBytes = std::uint64_t{4} << 20;
constexpr std::uint64_t kEmptiedBytes = std::uint64_t{16} << 20;  // at once
constexpr std::uint64_t kBytesPerEmptiedUnit = 4096;
constexpr std::uint64_t kBytesPerZeroedUnit = 512;
constexpr std::size_t kZeros = std::size_t{256} << 10;  // written by one call
constexpr const char* kWhat = "a slab of the host cache, beside the registries that may come";

}  // namespace

Result<SlabMemory> SlabMemory::Create(const std::string& name, std::uint64_t bytes, std::uint64_t promised, bool reserved) {
  SlabMemory memory;
  memory.bytes_ = RoundUp(bytes, static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE)));
  const std::uint64_t on_huge_pages = RoundUp(bytes, kHugePageBytes);
  if (reserved && bytes >= kHugePageBytes && FreeReservedHugeBytes() >= on_huge_pages) {
    // Another process may take the pages meanwhile; then the allocation fails, and the next slab is
    // on small pages.
    if (Result<UniqueFd> fd = CreateGrantable("kvm:" + name, on_huge_pages, PagePool::kReservedHuge); fd) {
      memory.fd_ = std::move(*fd);
      memory.bytes_ = on_huge_pages;
      memory.reserved_ = true;
      return memory;
    }
  }
  if (Status fits = CheckMemoryRoom(memory.bytes_ + promised, kWhat); !fits) return fits.error();
  Result<UniqueFd> fd = CreateGrantable("kvm:" + name, memory.bytes_);
  if (!fd) return fd.error();
  memory.fd_ = std::move(*fd);
  return memory;
}

SlabMemory SlabMemory::Reopen(UniqueFd fd, std::uint64_t bytes, bool reserved, std::uint64_t transparent) noexcept {
  SlabMemory memory;
  memory.fd_ = std::move(fd);
  memory.bytes_ = memory.allocated_ = bytes;
  memory.huge_->bytes = transparent;
  memory.reserved_ = reserved;
  return memory;
}

Result<bool> SlabMemory::AllocateSome(HugePageMaker& huge_pages, std::uint64_t promised) {
  if (waits()) return true;
  const std::uint64_t bytes = std::min(kSliceBytes, bytes_ - allocated_);
  if (bytes == 0) return false;
  if (!reserved_) {
    if (Status fits = CheckMemoryRoom(bytes_ - allocated_ + promised, kWhat); !fits) return fits.error();
  }
  if (::fallocate(fd_.get(), 0, static_cast<off_t>(allocated_), static_cast<off_t>(bytes)) != 0) {
    Error error = SystemError("allocate " + std::to_string(bytes_) + " bytes");
    if (error.sys_errno == ENOSPC || error.sys_errno == ENOMEM) error.code = Errc::kResourceExhausted;
    return error;
  }
  if (!reserved_ && bytes >= kHugePageBytes) {
    ++huge_->waiting;
    huge_pages.Make(fd_.get(), allocated_, bytes, [huge = huge_](std::uint64_t moved) {
      --huge->waiting;
      huge->bytes += moved;
    });
  }
  allocated_ += bytes;
  KVM_FAULT_POINT(kvmd_slab_allocating);
  return waits() || allocated_ < bytes_;
}

// A refusal only costs speed.
bool SlabMemory::EmptySome() noexcept {
  const std::uint64_t bytes = std::min(kEmptiedBytes, bytes_ - emptied_);
  if (!fd_ || bytes == 0) return false;
  Spend(bytes / kBytesPerEmptiedUnit);
  static_cast<void>(
      ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(emptied_), static_cast<off_t>(bytes)));
  emptied_ += bytes;
  return emptied_ < bytes_;
}

Status SlabMemory::Zero(std::uint64_t offset, std::uint64_t bytes) noexcept {
  static constexpr std::array<char, kZeros> zeros{};
  if (reserved_) return MakeError(Errc::kUnsupported, "reserved huge pages can't be written without a mapping");
  Spend(kSystemCallUnits + bytes / kBytesPerZeroedUnit);
  for (const std::uint64_t end = offset + bytes; offset < end;) {
    const ssize_t written = ::pwrite(fd_.get(), zeros.data(), std::min<std::uint64_t>(kZeros, end - offset), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return SystemError("zero a block");
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

}  // namespace kvm::daemon
