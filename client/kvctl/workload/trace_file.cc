#include "client/kvctl/workload/trace_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <memory>

#include "proto/base/unique_fd.h"

namespace kvm::ctl {
namespace {

constexpr unsigned kGzipBufferBytes = 256 << 10;

struct CloseGz {
  void operator()(gzFile_s* file) const noexcept { ::gzclose(file); }
};

// Reads and decompresses. The error is zlib's, or that the data ended too early.
Result<std::size_t> ReadGz(gzFile_s* file, std::span<char> into) {
  errno = 0;
  const int got = ::gzread(file, into.data(), static_cast<unsigned>(into.size()));
  if (got > 0) return static_cast<std::size_t>(got);
  int code = Z_OK;
  const char* const message = ::gzerror(file, &code);
  if (code == Z_ERRNO) return SystemError("read");
  if (code == Z_BUF_ERROR) return MakeError(Errc::kInvalidArgument, "the gzip data is cut off");
  if (got < 0 || code != Z_OK) return MakeError(Errc::kInvalidArgument, std::string("damaged gzip data: ") + message);
  return std::size_t{0};
}

}  // namespace

Result<LineReader::Source> OpenTraceFile(const std::string& path) {
  UniqueFd fd(path == kStandardInput ? ::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 0) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) {
    Error error = SystemError("open " + path);
    error.code = Errc::kNotFound;
    return error;
  }
  struct stat info {};
  if (::fstat(fd.get(), &info) == 0 && S_ISDIR(info.st_mode)) return MakeError(Errc::kInvalidArgument, path + " is a directory");
  const std::shared_ptr<gzFile_s> file(::gzdopen(fd.get(), "rb"), CloseGz());
  if (!file) return MakeError(Errc::kResourceExhausted, "open " + path + ": out of memory");
  static_cast<void>(fd.Release());  // zlib closes it
  ::gzbuffer(file.get(), kGzipBufferBytes);
  return LineReader::Source([file](std::span<char> into) { return ReadGz(file.get(), into); });
}

}  // namespace kvm::ctl
