// A directory for one test, removed with all its files. The path is short: Unix socket names
// have room for 107 bytes.
#pragma once

#include <filesystem>
#include <string>

namespace kvm::test {

class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace kvm::test
