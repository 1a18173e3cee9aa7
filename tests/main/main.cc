// Runner of every test binary: Catch2, or a child process that a test started
// (support/child_main.h).
#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <iostream>
#include <map>

#include "tests/support/process/child_main.h"

namespace kvm::test {
namespace {

std::map<std::string, ChildMain::Main>& Mains() {
  static std::map<std::string, ChildMain::Main> mains;
  return mains;
}

}  // namespace

ChildMain::ChildMain(std::string name, Main main) { Mains().emplace(std::move(name), std::move(main)); }

bool ChildMain::Dispatch(int argc, char** argv, int& exit_code) {
  if (argc < 3) return false;
  if (const auto itself = Mains().find(argv[1]); itself != Mains().end()) {
    exit_code = itself->second(std::vector<std::string>(argv + 2, argv + argc));
    return true;
  }
  if (std::string(argv[1]) != "--child") return false;
  const auto found = Mains().find(argv[2]);
  if (found == Mains().end()) {
    std::cerr << "no child named " << argv[2] << std::endl;
    exit_code = 127;
  } else {
    exit_code = found->second(std::vector<std::string>(argv + 3, argv + argc));
  }
  return true;
}

}  // namespace kvm::test

int main(int argc, char** argv) {
  int exit_code = 0;
  if (kvm::test::ChildMain::Dispatch(argc, argv, exit_code)) return exit_code;
  return Catch::Session().run(argc, argv);
}
