// MeshSockets: the sockets of kvmd-mesh processes that a scrape asks: those that were named, and
// those in a directory, which come and go with their processes.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace kvm::ctl {

// Not thread-safe.
class MeshSockets {
 public:
  // In the directory, the first ones by name; further ones are left out.
  static constexpr std::size_t kMostFound = 64;

  // `directory`: need not be there; empty: none.
  MeshSockets(std::vector<std::string> named, std::string directory);

  // Paths, each once. What is wrong with the directory is said on stderr, once until it is another
  // thing.
  std::vector<std::string> Find();

 private:
  void Say(const std::string& wrong);

  const std::vector<std::string> named_;
  const std::string directory_;
  std::string said_;
};

}  // namespace kvm::ctl
