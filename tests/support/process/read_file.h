// A file's whole text; empty if it can't be read.
#pragma once

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

namespace kvm::test {

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace kvm::test
