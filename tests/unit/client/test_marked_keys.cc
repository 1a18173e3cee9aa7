// Which keys of a prompt are marked as being computed, and what a lookup sees of them.
#include <atomic>
#include <chrono>
#include <vector>

#include "client/find/marked_keys.h"
#include "proto/shm/registry_view.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

constexpr std::uint64_t kBuckets = 256;

std::uint64_t NowNs() { return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()); }

std::vector<BlockKey> SomeKeys(std::size_t count, std::uint64_t seed) {
  std::vector<BlockKey> keys;
  // Odd multiples spread over all values, as hashes do.
  for (std::uint64_t i = 1; i <= count; ++i) keys.push_back({(i + seed) * 0x9E3779B97F4A7C15u, (i + seed) * 0xD1342543DE82EF95u});
  return keys;
}

// A registry's marks.
class Marks {
 public:
  void Set(const std::vector<BlockKey>& keys, std::uint64_t client, std::int64_t left_ms = 10'000, std::uint64_t age_ms = 0) {
    for (const BlockKey& key : keys) {
      layout::MarkRow* row = &rows_[layout::MarkBucket(key, kBuckets) * layout::kMarksPerBucket];
      layout::MarkInfo info{};
      while (row->Read(info) && info.client_id != 0) ++row;
      row->Write({key.lo, key.hi, client, NowNs() - age_ms * 1'000'000, NowNs() + static_cast<std::uint64_t>(left_ms * 1'000'000)});
      live_ = live_ + 1;
    }
  }
  MarkReader reader() const { return {rows_.data(), kBuckets, &live_}; }

 private:
  std::vector<layout::MarkRow> rows_{kBuckets * layout::kMarksPerBucket + 8};
  std::atomic<std::uint64_t> live_{0};
};

const std::vector<BlockKey> kPrompt = SomeKeys(200, 1), kOther = SomeKeys(40, 7000);

}  // namespace

TEST_CASE("Marked keys: the first and the last of a prompt are, and few of the others", "[unit]") {
  const std::vector<BlockKey> keys = KeysToMark(kPrompt, 1000);
  CHECK(keys.front() == kPrompt.front());
  CHECK(keys.back() == kPrompt.back());
  CHECK(keys.size() > 2);
  CHECK(keys.size() < kPrompt.size() / 4);
  CHECK(KeysToMark(kPrompt, 3).size() == 3);
  CHECK(KeysToMark({}, 3).empty());
}

TEST_CASE("Marked keys: a lookup of the same prompt sees that all of it is being computed", "[unit]") {
  Marks marks;
  marks.Set(KeysToMark(kPrompt, 1000), 7, 10'000, 500);
  const std::optional<BeingComputed> seen = FindMark(marks.reader(), kPrompt, 0, 8);
  REQUIRE(seen);
  CHECK(seen->blocks == 200);
  CHECK(seen->client_id == 7);
  CHECK(seen->age >= std::chrono::milliseconds(500));
  CHECK_FALSE(seen->own);
  CHECK(FindMark(marks.reader(), kPrompt, 0, 7)->own);
}

TEST_CASE("Marked keys: when a part has been published, the rest is still seen", "[unit]") {
  Marks marks;
  marks.Set(KeysToMark(kPrompt, 1000), 7);
  for (const std::size_t found : {1u, 5u, 120u, 199u}) {
    const std::optional<BeingComputed> seen = FindMark(marks.reader(), kPrompt, found, 8);
    REQUIRE(seen);
    CHECK(seen->blocks == 200);
  }
  CHECK_FALSE(FindMark(marks.reader(), kPrompt, 200, 8));
}

TEST_CASE("Marked keys: a prompt that shares a part sees no more of it than that", "[unit]") {
  Marks marks;
  marks.Set(KeysToMark(kPrompt, 1000), 7);
  std::vector<BlockKey> forked(kPrompt.begin(), kPrompt.begin() + 150);
  forked.insert(forked.end(), kOther.begin(), kOther.end());
  const std::optional<BeingComputed> seen = FindMark(marks.reader(), forked, 0, 8);
  REQUIRE(seen);
  CHECK(seen->blocks <= 150);
  CHECK(seen->blocks > 100);
  CHECK_FALSE(FindMark(marks.reader(), kOther, 0, 8));
}

TEST_CASE("Marked keys: the first mark decides whose turn it is, and ends where another client's begins", "[unit]") {
  Marks marks;
  const std::vector<BlockKey> front(kPrompt.begin(), kPrompt.begin() + 100), back(kPrompt.begin() + 100, kPrompt.end());
  marks.Set(KeysToMark(front, 1000), 7);
  marks.Set(KeysToMark(back, 1000), 8);
  const std::optional<BeingComputed> seen = FindMark(marks.reader(), kPrompt, 0, 8);
  REQUIRE(seen);
  CHECK(seen->client_id == 7);
  // The last key of the shorter prompt is marked, and is no key that the longer one looks at.
  CHECK(seen->blocks <= 100);
  CHECK(seen->blocks > 50);
}

TEST_CASE("Marked keys: a mark that has expired is none", "[unit]") {
  Marks marks;
  marks.Set(KeysToMark(kPrompt, 1000), 7, -1);
  CHECK_FALSE(FindMark(marks.reader(), kPrompt, 0, 8));
}

TEST_CASE("Marked keys: a mark by another clock, with years left, is none", "[unit]") {
  Marks marks;
  marks.Set(KeysToMark(kPrompt, 1000), 7, 100'000'000'000);
  CHECK_FALSE(FindMark(marks.reader(), kPrompt, 0, 8));
}

TEST_CASE("Samples: a smaller one is part of a larger one, and its size is as asked for", "[unit]") {
  std::size_t large = 0, small = 0;
  for (const BlockKey& key : SomeKeys(100'000, 3)) {
    large += InSample(key, 8);
    small += InSample(key, 64);
    REQUIRE((!InSample(key, 64) || InSample(key, 8)));
    REQUIRE(InSample(key, 1));
    REQUIRE_FALSE(InSample(key, 0));
  }
  CHECK(large > 11'000);
  CHECK(large < 14'000);
  CHECK(small > 1'300);
  CHECK(small < 1'850);
}
