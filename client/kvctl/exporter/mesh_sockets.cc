#include "client/kvctl/exporter/mesh_sockets.h"

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <system_error>
#include <utility>

namespace kvm::ctl {

namespace fs = std::filesystem;

MeshSockets::MeshSockets(std::vector<std::string> named, std::string directory)
    : named_(std::move(named)), directory_(std::move(directory)) {}

std::vector<std::string> MeshSockets::Find() {
  std::vector<std::string> out;
  const auto add = [&out](const std::string& path) {
    if (std::find(out.begin(), out.end(), path) == out.end()) out.push_back(path);
  };
  for (const std::string& path : named_) add(path);
  if (directory_.empty()) return out;
  std::vector<std::string> found;
  std::error_code error, ignored;
  for (fs::directory_iterator each(directory_, error), end; !error && each != end; each.increment(error)) {
    // A link leads to a file that the directory's owner may not have put there.
    if (fs::is_socket(each->symlink_status(ignored))) found.push_back(each->path().string());
  }
  std::string wrong;
  if (error && error != std::errc::no_such_file_or_directory) wrong = directory_ + ": " + error.message();
  std::sort(found.begin(), found.end());
  if (found.size() > kMostFound) {
    wrong = directory_ + " has more than " + std::to_string(kMostFound) + " sockets; the others are not asked";
    found.resize(kMostFound);
  }
  for (const std::string& path : found) add(path);
  Say(wrong);
  return out;
}

void MeshSockets::Say(const std::string& wrong) {
  if (wrong == said_) return;
  said_ = wrong;
  if (!wrong.empty()) std::cerr << "kvctl: --mesh-sockets-in: " << wrong << std::endl;
}

}  // namespace kvm::ctl
