#include "daemon/broker/services/grants.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <string_view>

#include "daemon/registry/region.h"
#include "proto/shm/sealed_memory.h"

namespace kvm::daemon {
namespace {

// The client's own text comes last, so that it can't imitate the parts before it.
std::string GrantPrefix(GrantRole role, std::uint32_t uid) {
  return std::string("kvm-granted:") + (role == GrantRole::kGenerationTable ? "generations" : "payload") + ":" + std::to_string(uid) + ":";
}

// The beginning of the name with which a memfd was made; empty if the kernel does not tell it.
std::string MemoryName(int fd) {
  constexpr std::string_view kMemfd = "/memfd:";
  std::array<char, 512> target;
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t bytes = ::readlink(path.c_str(), target.data(), target.size());
  if (bytes <= 0) return {};
  const std::string_view text(target.data(), static_cast<std::size_t>(bytes));
  return text.starts_with(kMemfd) ? std::string(text.substr(kMemfd.size())) : std::string();
}

Status CheckBelongs(int fd, GrantRole role, std::uint32_t uid, const std::string& what) {
  struct stat info {};
  if (::fstat(fd, &info) != 0) return SystemError("fstat " + what);
  switch (WritersOf(fd)) {
    case Writers::kNobody:
      if (info.st_uid == uid || info.st_uid == ::geteuid()) return {};
      return MakeError(Errc::kPermissionDenied, "region: " + what + ": it was made by user " + std::to_string(info.st_uid) +
                                                    ", this client is of user " + std::to_string(uid));
    case Writers::kHolders:
      if (MemoryName(fd).starts_with(GrantPrefix(role, uid))) return {};
      return MakeError(Errc::kPermissionDenied,
                       "region: " + what + ": kvmd did not grant this memory to user " + std::to_string(uid) + " for that");
    case Writers::kAnybody: break;
  }
  return MakeError(Errc::kPermissionDenied, "region: " + what + ": neither sealed against writing nor granted by this kvmd");
}

}  // namespace

Result<UniqueFd> MakeGrant(GrantRole role, std::uint32_t uid, const std::string& client_name, std::uint64_t size_bytes) {
  return CreateGrantable(GrantPrefix(role, uid) + client_name, size_bytes);
}

Status CheckBelongs(const Region& region, std::uint32_t uid) {
  if (Status table = CheckBelongs(region.fds[0].get(), GrantRole::kGenerationTable, uid, "generation table"); !table) return table;
  // Descriptors of GPU memory are no memfds: the driver knows who may have them.
  if (region.info.handle_kind != static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd)) return {};
  for (std::size_t i = 1; i < region.fds.size(); ++i) {
    if (Status segment = CheckBelongs(region.fds[i].get(), GrantRole::kPayload, uid, "segment " + std::to_string(i - 1)); !segment)
      return segment;
  }
  return {};
}

}  // namespace kvm::daemon
