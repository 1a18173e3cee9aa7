#include "client/mesh/disk/disk_directory.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <memory>
#include <string_view>

#include "client/mesh/disk/segment_file.h"

namespace kvm::mesh {
namespace {

constexpr const char* kLockName = "lock";

Error Refused(const std::string& what) { return MakeError(Errc::kPermissionDenied, "--disk-path: " + what); }

Result<UniqueFd> Lock(int directory, const std::string& path) {
  UniqueFd lock(::openat(directory, kLockName, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
  if (!lock && errno == ELOOP) return Refused(path + "/lock is a symlink");
  if (!lock) return SystemError("--disk-path: open " + path + "/lock");
  struct stat info {};
  if (::fstat(lock.get(), &info) != 0) return SystemError("--disk-path: look at " + path + "/lock");
  if (!S_ISREG(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 077) != 0)
    return Refused(path + "/lock is no file of this user with mode 0600");
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno == EWOULDBLOCK)
    return MakeError(Errc::kAlreadyExists, "--disk-path: another process uses " + path + " (it holds the lock there)");
  return SystemError("--disk-path: lock " + path + "/lock");
}

}  // namespace

Result<DiskDirectory> DiskDirectory::Open(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return SystemError("--disk-path: make " + path);
  // A slash at the end would have a symlink followed.
  std::string name = path;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  UniqueFd directory(::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory && (errno == ELOOP || errno == ENOTDIR)) return Refused(path + " is a symlink, or no directory");
  if (!directory) return SystemError("--disk-path: open " + path);
  struct stat info {};
  if (::fstat(directory.get(), &info) != 0) return SystemError("--disk-path: look at " + path);
  if (info.st_uid != ::geteuid()) return Refused(path + " belongs to user " + std::to_string(info.st_uid));
  if ((info.st_mode & 022) != 0) return Refused(path + " can be written to by other users; chmod it to 0700");
  Result<UniqueFd> lock = Lock(directory.get(), path);
  if (!lock) return lock.error();
  return DiskDirectory(std::move(directory), std::move(*lock));
}

Result<std::vector<std::uint64_t>> DiskDirectory::Segments() const {
  const int own = ::openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (own < 0) return SystemError("--disk-path: open the directory");
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(own), ::closedir);
  if (!entries) {
    ::close(own);
    return SystemError("--disk-path: list the directory");
  }
  std::vector<std::uint64_t> out;
  for (const dirent* entry = ::readdir(entries.get()); entry != nullptr; entry = ::readdir(entries.get())) {
    const std::string_view name(entry->d_name);
    const std::size_t dash = name.find('-');
    std::uint64_t segment = 0;
    if (dash == std::string_view::npos) continue;
    const auto parsed = std::from_chars(name.data() + dash + 1, name.data() + name.size(), segment, 16);
    if (parsed.ec == std::errc() && SegmentFile::Name(segment) == name) out.push_back(segment);
  }
  std::sort(out.begin(), out.end());
  return out;
}

void DiskDirectory::Remove(std::uint64_t segment) const noexcept {
  static_cast<void>(::unlinkat(directory_.get(), SegmentFile::NameText(segment).data(), 0));
}

}  // namespace kvm::mesh
