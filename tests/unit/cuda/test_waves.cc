#include "cuda/import/waves.h"

#include <vector>

#include "tests/catch.h"

namespace {

using kvm::Waves;

std::vector<std::size_t> SizesOf(std::size_t blocks) {
  Waves waves(blocks);
  std::vector<std::size_t> sizes;
  for (std::size_t end = 0; end < blocks;) {
    const std::size_t next = waves.NextEnd();
    REQUIRE(next > end);
    REQUIRE(next <= blocks);
    sizes.push_back(next - end);
    end = next;
  }
  return sizes;
}

}  // namespace

TEST_CASE("Waves: a short list is one wave", "[unit]") {
  for (const std::size_t blocks : {std::size_t{1}, std::size_t{128}, std::size_t{511}}) CHECK(SizesOf(blocks) == std::vector{blocks});
}

TEST_CASE("Waves: a long list begins with a short wave, the next ones grow up to a bound, and the last is short", "[unit]") {
  CHECK(SizesOf(512) == std::vector<std::size_t>{128, 288, 96});
  CHECK(SizesOf(1024) == std::vector<std::size_t>{128, 512, 288, 96});
  CHECK(SizesOf(16384) == std::vector<std::size_t>{128, 512, 2048, 4096, 4096, 4096, 1312, 96});
}

TEST_CASE("Waves: they are as many as their count says", "[unit]") {
  for (std::size_t blocks = 1; blocks < 20'000; blocks += 1 + blocks / 7) {
    INFO(blocks << " blocks");
    CHECK(Waves::Count(blocks) == SizesOf(blocks).size());
  }
}
