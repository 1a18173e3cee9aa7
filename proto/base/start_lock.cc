#include "proto/base/start_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <sstream>
#include <thread>

#include "proto/base/text_files.h"

namespace kvm {
namespace {

constexpr std::chrono::seconds kLockPatience{5};  // one that starts holds it for milliseconds
constexpr std::chrono::milliseconds kLockPause{10};

bool SameFile(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

// Lines of /proc/locks: "1: FLOCK  ADVISORY  WRITE PID MAJOR:MINOR:INODE 0 EOF", the numbers of the
// device in hex.
std::string HolderOf(const struct stat& file) {
  const Result<std::string> locks = ReadTextFile("/proc/locks");
  if (!locks) return "a process";
  std::ostringstream wanted;
  wanted << std::hex;
  wanted.fill('0');
  wanted.width(2);
  wanted << major(file.st_dev) << ':';
  wanted.width(2);
  wanted << minor(file.st_dev) << ':' << std::dec << file.st_ino;
  std::istringstream lines(*locks);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream fields(line);
    std::string number, kind, advisory, access, pid, inode;
    fields >> number >> kind >> advisory >> access >> pid >> inode;
    if (kind == "FLOCK" && inode == wanted.str()) return "process " + pid;
  }
  return "a process";
}

// Opens the lock file, and makes it if it does not exist.
Result<UniqueFd> OpenOwn(const std::string& path, struct stat& info) {
  UniqueFd file(::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600));
  if (!file && errno == ENOENT) return SystemError("no directory for the lock " + path);
  if (!file) return SystemError("open the lock " + path);
  if (::fstat(file.get(), &info) != 0) return SystemError("look at the lock " + path);
  if (!S_ISREG(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 077) != 0) {
    return MakeError(Errc::kPermissionDenied,
                     path + " (of user " + std::to_string(info.st_uid) + ") is no lock file of this user with mode 0600; remove it");
  }
  return file;
}

}  // namespace

Result<StartLock> StartLock::Take(const std::string& path) {
  const auto deadline = std::chrono::steady_clock::now() + kLockPatience;
  while (true) {
    struct stat opened {
    }, there{};
    Result<UniqueFd> file = OpenOwn(path, opened);
    if (!file) return file.error();
    if (::flock(file->get(), LOCK_EX | LOCK_NB) == 0) {
      // Its last holder may have removed it meanwhile.
      if (::lstat(path.c_str(), &there) == 0 && SameFile(opened, there)) return StartLock(path, std::move(*file));
    } else if (errno != EWOULDBLOCK && errno != EINTR) {
      return SystemError("lock " + path);
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      return MakeError(Errc::kAlreadyExists, HolderOf(opened) + " has held the lock " + path + " for " +
                                                 std::to_string(kLockPatience.count()) +
                                                 " s: another process that is starting, or was stopped while it started");
    }
    std::this_thread::sleep_for(kLockPause);
  }
}

StartLock::~StartLock() {
  if (path_.empty()) return;
  struct stat own {
  }, there{};
  if (::fstat(file_.get(), &own) == 0 && ::lstat(path_.c_str(), &there) == 0 && SameFile(own, there)) ::unlink(path_.c_str());
}

}  // namespace kvm
