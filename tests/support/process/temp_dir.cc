#include "tests/support/process/temp_dir.h"

#include <stdlib.h>

#include "tests/catch.h"

namespace kvm::test {

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "kvmd-test-XXXXXX").string();
  REQUIRE(::mkdtemp(pattern.data()) != nullptr);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace kvm::test
