// Entry points of child processes that live in the test binary itself.
//
//   const kvm::test::ChildMain publisher("publisher", [](const std::vector<std::string>& arguments)
//   { …; return 0; });
//
// `binary --child publisher ARG…` runs it instead of the tests.
// tests/support/process/child_process.h starts it.
// `binary publisher ARG…` does, too, for code that starts the program it runs in again.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace kvm::test {

class ChildMain {
 public:
  using Main = std::function<int(const std::vector<std::string>& arguments)>;
  ChildMain(std::string name, Main main);

  // Runs the child that the command line asks for, if it asks for one.
  static bool Dispatch(int argc, char** argv, int& exit_code);
};

}  // namespace kvm::test
