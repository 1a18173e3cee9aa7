// Removes the memory behind this process's own mappings, as a hole in huge pages or a full machine
// would: an access raises SIGBUS from then on. It works on any machine.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "proto/base/unique_fd.h"

namespace kvm::test {

// Does so for memfds with `part` in their name, either read-only or writable mappings; returns how
// many mappings there were.
inline std::size_t LoseMappings(std::string_view part, bool written = false) {
  std::vector<std::pair<std::uintptr_t, std::uintptr_t>> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const std::size_t name = line.find("/memfd:");
    if (name == std::string::npos || line.find(part, name) == std::string::npos ||
        line.find(written ? " rw-s " : " r--s ") == std::string::npos)
      continue;
    std::size_t dash = 0;
    const std::uintptr_t begin = std::stoul(line, &dash, 16);
    found.emplace_back(begin, std::stoul(line.substr(dash + 1), nullptr, 16));
  }
  const UniqueFd nothing(::memfd_create("nothing", MFD_CLOEXEC));
  std::size_t lost = 0;
  for (const auto& [begin, end] : found) {
    void* const at = reinterpret_cast<void*>(begin);  // NOLINT(performance-no-int-to-ptr): where the kernel says it is
    lost += ::mmap(at, end - begin, written ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_FIXED, nothing.get(), 0) == at;
  }
  return lost;
}

// A memfd on `pages` huge pages, which are reserved while the object lives. False if none can be
// reserved. The machine has one pool of them, so a test of another process waits here until this
// object is destroyed.
class HugeMemory {
 public:
  static constexpr std::size_t kPage = std::size_t{2} << 20;

  explicit HugeMemory(std::size_t pages) : lock_(::open("/tmp/kvm-test-huge-pages.lock", O_CREAT | O_RDWR | O_CLOEXEC, 0666)) {
    static_cast<void>(::flock(lock_.get(), LOCK_EX));
    before_ = Read();
    if (before_ < 0) return;
    Write(before_ + static_cast<long>(pages));
    fd_.Reset(::memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | (21u << 26)));
    if (!fd_ || ::ftruncate(fd_.get(), static_cast<off_t>(pages * kPage)) != 0 ||
        ::fallocate(fd_.get(), 0, 0, static_cast<off_t>(pages * kPage)) != 0)
      fd_.Reset();
  }
  ~HugeMemory() { GiveBack(); }
  HugeMemory(const HugeMemory&) = delete;
  HugeMemory& operator=(const HugeMemory&) = delete;

  explicit operator bool() const { return bool{fd_}; }
  int fd() const { return fd_.get(); }
  // Punches a hole in all of it and leaves the kernel no page for the next access. False if another
  // process has reserved more pages.
  bool Punch(std::size_t bytes) {
    const bool punched = ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) == 0;
    GiveBack();
    return punched && before_ == 0 && Read() == 0;
  }

 private:
  static constexpr const char* kPool = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
  static long Read() {
    long pages = -1;
    std::ifstream(kPool) >> pages;
    return pages;
  }
  static void Write(long pages) { std::ofstream(kPool) << pages; }
  void GiveBack() {
    if (before_ >= 0) Write(before_);
  }

  long before_ = -1;
  const UniqueFd lock_;
  UniqueFd fd_;
};

}  // namespace kvm::test
