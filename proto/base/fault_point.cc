#include "proto/base/fault_point.h"

#if defined(KVM_FAULT_POINTS)

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace kvm {
namespace {

constexpr const char* kNames[] = {
#define KVM_FAULT_POINT_NAME(name) #name,
    KVM_FAULT_POINT_NAMES(KVM_FAULT_POINT_NAME)
#undef KVM_FAULT_POINT_NAME
};

}  // namespace

void ReachFaultPoint(FaultPoint point) noexcept {
  static const char* const path = std::getenv("KVM_FAULT_FILE");
  static std::atomic<unsigned> reached{0};
  if (path == nullptr) return;
  std::FILE* const file = std::fopen(path, "re");
  if (file == nullptr) return;
  char name[64] = {}, action[8] = {};
  unsigned count = 0;
  const int read = std::fscanf(file, "%63s %u %7s", name, &count, action);
  std::fclose(file);
  if (read < 2 || std::string_view(name) != kNames[static_cast<std::size_t>(point)]) return;
  const unsigned now = ++reached;
  if (std::string_view(action) == "stop") {
    // To this thread: a signal to the process may be taken by another thread, and this one would
    // go on for a moment.
    if (now == count) ::raise(SIGSTOP);
  } else if (now >= count) {
    ::kill(::getpid(), SIGKILL);
  }
}

}  // namespace kvm

#endif
