// A DescriptorCloser whose thread for one user waits in a close until Release: what is handed over
// meanwhile stays open, what the caller closes itself does not.
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "proto/base/descriptor_closer.h"
#include "proto/base/inode.h"
#include "tests/support/process/eventually.h"
#include "tests/support/process/lingering_socket.h"

namespace kvm::test {

class HeldCloser {
 public:
  HeldCloser(DescriptorCloser& closer, std::uint32_t uid) { closer.Close(uid, std::move(lingering_.socket)); }
  ~HeldCloser() { Release(); }
  HeldCloser(const HeldCloser&) = delete;
  HeldCloser& operator=(const HeldCloser&) = delete;

  void Release() { lingering_.reader.Reset(); }

 private:
  LingeringSocket lingering_;
};

// How many descriptors this process has of the file.
inline int DescriptorsOf(const FileId& file) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename().string());
    struct stat info {};
    if (::fstat(fd, &info) == 0 && FileIdOf(fd) == file) ++count;
  }
  return count;
}

}  // namespace kvm::test
