#include "tests/support/kvmd/kvmd_home.h"

#include <algorithm>
#include <exception>
#include <fstream>
#include <iostream>
#include <sstream>

namespace kvm::test {

std::string KvmdBinary() { return KVM_KVMD_BINARY; }

KvmdHome::~KvmdHome() {
  if (std::uncaught_exceptions() > 0) std::cerr << "kvmd's log:\n" << Log() << std::endl;
}

std::string KvmdHome::Log() const {
  std::ifstream file(log_path());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> KvmdHome::CommandLine(const std::vector<std::string>& options) const {
  std::vector<std::string> arguments{KvmdBinary(), "--socket", socket()};
  if (std::find(options.begin(), options.end(), "--max-entries") == options.end())
    arguments.insert(arguments.end(), {"--max-entries", "100000"});
  arguments.insert(arguments.end(), options.begin(), options.end());
  return arguments;
}

}  // namespace kvm::test
