#include "client/mesh/disk/segment_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>

namespace kvm::mesh {
namespace {

// O_DIRECT is tried with the header: some file systems refuse it at open, others at the first use.
bool DropDirect(int file) noexcept {
  const int flags = ::fcntl(file, F_GETFL);
  return flags >= 0 && (flags & O_DIRECT) != 0 && ::fcntl(file, F_SETFL, flags & ~O_DIRECT) == 0;
}

UniqueFd OpenWithDirect(int directory, const std::string& name, int flags, bool& direct) noexcept {
  direct = true;
  UniqueFd file(::openat(directory, name.c_str(), flags | O_DIRECT, 0600));
  if (file || errno != EINVAL) return file;
  direct = false;
  // A file that was made before O_DIRECT was refused
  if ((flags & O_EXCL) != 0) static_cast<void>(::unlinkat(directory, name.c_str(), 0));
  return UniqueFd(::openat(directory, name.c_str(), flags, 0600));
}

// All of the page, or errno.
template <class Move>
int MovePage(int file, Move move, bool& direct) noexcept {
  for (;;) {
    const ssize_t moved = move();
    if (moved == static_cast<ssize_t>(kDiskPage)) return 0;
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0 && errno == EINVAL && direct && DropDirect(file)) {
      direct = false;
      continue;
    }
    return moved < 0 ? errno : ENODATA;
  }
}

int Reserve(int file, std::uint64_t bytes) noexcept {
  // The size stays: what lies behind the last record is no part of the file.
  if (::fallocate(file, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)) == 0) return 0;
  return errno == EOPNOTSUPP || errno == ENOSYS ? 0 : errno;
}

// A file that has been made, until it is whole: removed again if that fails, also by an exception.
class Unfinished {
 public:
  Unfinished(int directory, std::uint64_t segment) noexcept : directory_(directory), name_(SegmentFile::NameText(segment)) {}
  ~Unfinished() {
    if (!whole_) static_cast<void>(::unlinkat(directory_, name_.data(), 0));
  }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;
  void Keep() noexcept { whole_ = true; }

 private:
  const int directory_;
  const SegmentFile::NameBytes name_;
  bool whole_ = false;
};

}  // namespace

SegmentFile::NameBytes SegmentFile::NameText(std::uint64_t segment) noexcept {
  NameBytes name{};
  std::snprintf(name.data(), name.size(), "segment-%016llx", static_cast<unsigned long long>(segment));
  return name;
}

Result<std::shared_ptr<SegmentFile>> SegmentFile::Create(int directory, const SegmentHeader& header, std::uint64_t bytes) {
  const std::string name = Name(header.segment);
  const AlignedBuffer page(kDiskPage);
  bool direct = false;
  UniqueFd file = OpenWithDirect(directory, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, direct);
  if (!file && errno == EEXIST) return MakeError(Errc::kAlreadyExists, name + " exists");
  if (!file) return SystemError("make " + name);
  Unfinished unfinished(directory, header.segment);
  Encode(header, page.page());
  int failed = Reserve(file.get(), bytes);
  if (failed == 0)
    failed = MovePage(
        file.get(), [&] { return ::pwrite(file.get(), page.data(), kDiskPage, 0); }, direct);
  if (failed != 0) return SystemError("write " + name, failed);
  std::shared_ptr<SegmentFile> out(new SegmentFile(std::move(file), header, direct));
  unfinished.Keep();
  return out;
}

Result<std::shared_ptr<SegmentFile>> SegmentFile::Open(int directory, std::uint64_t segment) {
  const std::string name = Name(segment);
  struct stat info {};
  // A fifo must not keep this process waiting, and a device must not be opened.
  if (::fstatat(directory, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) return SystemError("look at " + name);
  if (!S_ISREG(info.st_mode)) return MakeError(Errc::kPermissionDenied, name + " is no plain file");
  bool direct = false;
  UniqueFd file = OpenWithDirect(directory, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, direct);
  if (!file && errno == ELOOP) return MakeError(Errc::kPermissionDenied, name + " is a symlink");
  if (!file) return SystemError("open " + name);
  if (::fstat(file.get(), &info) != 0) return SystemError("look at " + name);
  if (!S_ISREG(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 077) != 0)
    return MakeError(Errc::kPermissionDenied, name + " is no file of this user with mode 0600");
  const AlignedBuffer page(kDiskPage);
  const int failed = MovePage(
      file.get(), [&] { return ::pread(file.get(), page.data(), kDiskPage, 0); }, direct);
  if (failed == ENODATA) return MakeError(Errc::kProtocol, name + " has no header");
  if (failed != 0) return SystemError("read " + name, failed);
  Result<SegmentHeader> header = DecodeSegmentHeader(page.page());
  if (!header) return MakeError(header.error().code, name + ": " + header.error().message);
  if (header->segment != segment) return MakeError(Errc::kProtocol, name + " is another segment");
  return std::shared_ptr<SegmentFile>(new SegmentFile(std::move(file), std::move(*header), direct));
}

Result<std::uint64_t> SegmentFile::size() const {
  struct stat info {};
  if (::fstat(file_.get(), &info) != 0) return SystemError("look at " + Name(segment()));
  return static_cast<std::uint64_t>(info.st_size);
}

void SegmentFile::Shorten(std::uint64_t bytes) const noexcept {
  [[maybe_unused]] const int result = ::ftruncate(file_.get(), static_cast<off_t>(bytes));
}

}  // namespace kvm::mesh
