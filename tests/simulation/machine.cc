#include "tests/simulation/machine.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string_view>

namespace kvm::simulation {
namespace {

Machine* current = nullptr;

bool Lacks(bool Machine::*what) noexcept {
  if (current == nullptr || !(current->*what)) return false;
  ++current->refusals;
  return true;
}

int Refuse(int error) noexcept {
  errno = error;
  return -1;
}

int Allocate(int fd, int mode, std::int64_t offset, std::int64_t bytes) noexcept {
  if ((mode & FALLOC_FL_PUNCH_HOLE) == 0 && Lacks(&Machine::lacks_memory)) return Refuse(ENOSPC);
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, bytes));
}

int Control(int fd, int command, void* argument) noexcept {
  if ((command == F_DUPFD_CLOEXEC || command == F_DUPFD) && Lacks(&Machine::lacks_descriptors)) return Refuse(EMFILE);
  return static_cast<int>(::syscall(SYS_fcntl, fd, command, argument));
}

// The simulated machine has no control groups and no /sys: how much memory the real one has left
// changes no run, and costs none the time to read a dozen files.
bool IsOfTheRealMachine(std::string_view path) noexcept {
  return path.starts_with("/sys/") || path == "/proc/meminfo" || path == "/proc/self/cgroup" || path == "/proc/self/status";
}

int Open(const char* path, int flags, mode_t mode) noexcept {
  if (current != nullptr && IsOfTheRealMachine(path)) return Refuse(ENOENT);
  // It is readable and empty, which tells that /proc hides nothing.
  if (current != nullptr && std::string_view(path) == "/proc/self/mountinfo") path = "/dev/null";
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

}  // namespace

Machine::Machine(std::uint64_t seed) : random_(seed) {
  if (current != nullptr) std::abort();
  current = this;
}

Machine::~Machine() { current = nullptr; }

Machine* Machine::Current() noexcept { return current; }

}  // namespace kvm::simulation

// These take the place of the C library's functions of the same name, for this whole program.
extern "C" {

int clock_gettime(clockid_t clock, timespec* out) noexcept {
  const kvm::simulation::Machine* machine = kvm::simulation::Machine::Current();
  if (machine == nullptr) return static_cast<int>(::syscall(SYS_clock_gettime, clock, out));
  constexpr std::uint64_t kSecond = 1'000'000'000, kEpoch = 1'700'000'000;
  out->tv_sec = static_cast<time_t>(machine->now_ns() / kSecond + (clock == CLOCK_REALTIME ? kEpoch : 0));
  out->tv_nsec = static_cast<long>(machine->now_ns() % kSecond);
  return 0;
}

ssize_t getrandom(void* out, size_t bytes, unsigned flags) noexcept {
  kvm::simulation::Machine* machine = kvm::simulation::Machine::Current();
  if (machine == nullptr) return ::syscall(SYS_getrandom, out, bytes, flags);
  for (size_t done = 0; done < bytes;) {
    const std::uint64_t word = machine->Draw();
    const size_t part = bytes - done < sizeof(word) ? bytes - done : sizeof(word);
    std::memcpy(static_cast<char*>(out) + done, &word, part);
    done += part;
  }
  return static_cast<ssize_t>(bytes);
}

int sysinfo(struct sysinfo* out) noexcept {
  if (kvm::simulation::Machine::Current() == nullptr) return static_cast<int>(::syscall(SYS_sysinfo, out));
  *out = {};
  out->mem_unit = 1 << 20;
  out->totalram = 16'384;
  out->freeram = 8'192;
  return 0;
}

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const auto mode = static_cast<mode_t>((flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, unsigned) : 0);
  va_end(arguments);
  return kvm::simulation::Open(path, flags, mode);
}

int memfd_create(const char* name, unsigned flags) noexcept {
  using kvm::simulation::Machine;
  if (kvm::simulation::Lacks(&Machine::lacks_descriptors)) return kvm::simulation::Refuse(EMFILE);
  if (kvm::simulation::Lacks(&Machine::lacks_memory)) return kvm::simulation::Refuse(ENOMEM);
  return static_cast<int>(::syscall(SYS_memfd_create, name, flags));
}

int fallocate(int fd, int mode, off_t offset, off_t bytes) { return kvm::simulation::Allocate(fd, mode, offset, bytes); }
int fallocate64(int fd, int mode, off64_t offset, off64_t bytes) { return kvm::simulation::Allocate(fd, mode, offset, bytes); }

int fcntl(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void* const argument = va_arg(arguments, void*);
  va_end(arguments);
  return kvm::simulation::Control(fd, command, argument);
}

int fcntl64(int fd, int command, ...) {
  va_list arguments;
  va_start(arguments, command);
  void* const argument = va_arg(arguments, void*);
  va_end(arguments);
  return kvm::simulation::Control(fd, command, argument);
}

}  // extern "C"
