// arc4random for programs that run with an older C library than that of the machine where they are
// built (KVM_SELF_CONTAINED): libstdc++, linked statically, calls it in std::random_device, and
// glibc has it from 2.36 on only. Thread-safe.
#include <sys/random.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>

extern "C" std::uint32_t arc4random() noexcept {
  std::uint32_t value = 0;
  ssize_t got = -1;
  do {
    got = ::getrandom(&value, sizeof(value), 0);
  } while (got < 0 && errno == EINTR);
  // Of so few bytes the kernel has all or says why not; as glibc's own does, this one can't go on.
  if (got != sizeof(value)) std::abort();
  return value;
}
