#include "tests/support/kvmd/kvmd_home.h"

#include <algorithm>
#include <exception>
#include <iostream>

#include "tests/support/process/read_file.h"

namespace kvm::test {

std::string KvmdBinary() { return KVM_KVMD_BINARY; }

KvmdHome::~KvmdHome() {
  if (std::uncaught_exceptions() == 0) return;
  std::cerr << "kvmd's log:\n" << Log() << std::endl;
  if (const std::string mesh = ReadFile(dir_ / "mesh.log"); !mesh.empty()) std::cerr << "kvmd-mesh's log:\n" << mesh << std::endl;
}

std::string KvmdHome::Log() const { return ReadFile(log_path()); }

std::vector<std::string> KvmdHome::CommandLine(const std::vector<std::string>& options) const {
  std::vector<std::string> arguments{KvmdBinary(), "--socket", socket()};
  if (std::find(options.begin(), options.end(), "--max-entries") == options.end())
    arguments.insert(arguments.end(), {"--max-entries", "100000"});
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

}  // namespace kvm::test
