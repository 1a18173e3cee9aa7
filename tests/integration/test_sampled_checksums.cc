// ClientOptions::verify_one_in: some of the imported blocks are compared with what their publisher
// recorded, by a sample that the keys choose.
#include <algorithm>

#include "tests/catch.h"
#include "tests/support/kvmd/host_cache.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ImportCheck;
using test::KvmdProcess;
using test::Worker;

constexpr std::uint32_t kOneIn = 4;
constexpr const char* kPrompt = "a:40";

std::unique_ptr<Worker> Start(const KvmdProcess& kvmd, const std::string& name, std::uint32_t verify_one_in) {
  return test::StartWorker({.socket = kvmd.socket(), .name = name, .verify_one_in = verify_one_in});
}

// Index of the prompt's first block after `from` that is, or is not, in the sample.
std::size_t BlockOf(const std::vector<BlockKey>& keys, bool in_sample, std::size_t from = 1) {
  const auto found = std::find_if(keys.begin() + static_cast<std::ptrdiff_t>(from), keys.end(),
                                  [&](const BlockKey& key) { return InSample(key, kOneIn) == in_sample; });
  REQUIRE(found != keys.end());
  return static_cast<std::size_t>(found - keys.begin());
}

// As a fault of memory, or an owner that breaks the rules, would do it.
void Damage(Worker& owner, std::size_t block) { owner.region().BlockData(static_cast<std::uint32_t>(block))[100] ^= std::byte{1}; }

void PublishPrompt(Worker& owner, Worker& reader) {
  owner.Publish(kPrompt, 0);
  KVM_REQUIRE_OK(owner.Flush());
  REQUIRE(test::Eventually([&] { return reader.Find(kPrompt).size() == 40; }));
}

}  // namespace

TEST_CASE("Sampled checksums: a damaged block of the sample is refused and counted", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner", kOneIn), reader = Start(kvmd, "reader", kOneIn);
  PublishPrompt(*owner, *reader);
  const std::vector<BlockKey> keys = reader->Keys(kPrompt);
  const std::size_t damaged = BlockOf(keys, true);
  Damage(*owner, damaged);
  const ImportCheck import = reader->Import(reader->Find(kPrompt), keys, 0);
  CHECK(import.valid == damaged);
  CHECK(import.wrong == 0);
  REQUIRE_FALSE(import.failed.empty());
  CHECK(import.failed[0].reason == ImportFailure::kCorrupt);
  CHECK(reader->client().Stats().blocks_corrupt == 1);
}

TEST_CASE("Sampled checksums: without the sample, the damaged block is taken", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner", kOneIn), reader = Start(kvmd, "reader", 0);
  PublishPrompt(*owner, *reader);
  const std::vector<BlockKey> keys = reader->Keys(kPrompt);
  Damage(*owner, BlockOf(keys, true));
  const ImportCheck import = reader->Import(reader->Find(kPrompt), keys, 0);
  CHECK(import.valid == 40);
  CHECK(import.wrong == 1);
  CHECK(reader->client().Stats().blocks_verified == 0);
}

TEST_CASE("Sampled checksums: exactly the blocks of the sample are compared", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner", kOneIn), reader = Start(kvmd, "reader", kOneIn);
  PublishPrompt(*owner, *reader);
  const std::vector<BlockKey> keys = reader->Keys(kPrompt);
  const auto in_sample =
      static_cast<std::uint64_t>(std::count_if(keys.begin(), keys.end(), [](const BlockKey& key) { return InSample(key, kOneIn); }));
  REQUIRE(in_sample > 0);
  REQUIRE(in_sample < 40);
  CHECK(reader->Import(reader->Find(kPrompt), keys, 0).valid == 40);
  CHECK(reader->client().Stats().blocks_verified == in_sample);
  CHECK(reader->client().Stats().blocks_corrupt == 0);
}

TEST_CASE("Sampled checksums: a slice of a match compares the same blocks as the whole", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner", kOneIn), reader = Start(kvmd, "reader", kOneIn);
  PublishPrompt(*owner, *reader);
  const std::vector<BlockKey> keys = reader->Keys(kPrompt);
  const std::size_t damaged = BlockOf(keys, true, 10);
  Damage(*owner, damaged);
  const std::vector<BlockKey> behind(keys.begin() + 10, keys.end());
  const ImportCheck import = reader->Import(reader->Find(kPrompt).Slice(10), behind, 0);
  CHECK(import.valid == damaged - 10);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sampled checksums: a publisher without them, or with another sample, costs no good block", "[integration]") {
  KvmdProcess kvmd;
  const auto reader = Start(kvmd, "reader", kOneIn);
  for (const std::uint32_t one_in : {0u, 2u, 7u, 4'000'000u}) {
    const std::string name = "owner-" + std::to_string(one_in), prompt = "p" + std::to_string(one_in) + ":40";
    const auto owner = Start(kvmd, name, one_in);
    owner->Publish(prompt, 0);
    KVM_REQUIRE_OK(owner->Flush());
    REQUIRE(test::Eventually([&] { return reader->Find(prompt).size() == 40; }));
    INFO(name);
    const ImportCheck import = reader->Import(reader->Find(prompt), reader->Keys(prompt), 0);
    CHECK(import.valid == 40);
    CHECK(import.wrong == 0);
  }
  CHECK(reader->client().Stats().blocks_corrupt == 0);
}

TEST_CASE("Sampled checksums: a block keeps no checksum of its last content", "[integration]") {
  KvmdProcess kvmd;
  const auto owner = Start(kvmd, "owner", kOneIn), reader = Start(kvmd, "reader", 0);
  PublishPrompt(*owner, *reader);
  // Other prompts into the same blocks: some that were in the sample are not any more.
  owner->Publish("b:40", 0);
  KVM_REQUIRE_OK(owner->Flush());
  REQUIRE(test::Eventually([&] { return reader->Find("b:40").size() == 40; }));
  ImportOptions verify;
  verify.verify = true;
  const ImportCheck import = reader->Import(reader->Find("b:40"), reader->Keys("b:40"), 0, verify);
  CHECK(import.valid == 40);
  CHECK(import.wrong == 0);
}

TEST_CASE("Sampled checksums: a copy in the host cache carries the checksum of its publisher", "[integration]") {
  KvmdProcess kvmd({"--host-cache", "8M"});
  auto owner = Start(kvmd, "owner", kOneIn);
  const auto reader = Start(kvmd, "reader", kOneIn);
  PublishPrompt(*owner, *reader);
  const std::vector<BlockKey> keys = reader->Keys(kPrompt);
  REQUIRE(test::Eventually([&] { return owner->client().Stats().blocks_offloaded == 40; }));
  owner.reset();
  REQUIRE(test::Eventually([&] { return reader->Find(kPrompt).size() == 40; }));
  CHECK(reader->Import(reader->Find(kPrompt), keys, 0).valid == 40);
  CHECK(reader->client().Stats().blocks_from_host_cache == 40);
  CHECK(reader->client().Stats().blocks_verified > 0);
}

TEST_CASE("Sampled checksums: a restarted worker adopts its region whether or not it still takes samples", "[integration]") {
  KvmdProcess kvmd;
  const auto reader = Start(kvmd, "reader", kOneIn);
  const auto adopt = [&](std::uint32_t one_in, const std::string& prompt, std::uint32_t before) {
    {
      test::RemoteWorker dead({.socket = kvmd.socket(), .name = prompt, .verify_one_in = before});
      dead.Publish(prompt + ":40", 0);
      dead.Kill();
    }
    Result<std::unique_ptr<Worker>> next = Worker::Start({.socket = kvmd.socket(), .name = prompt, .adopt = true, .verify_one_in = one_in});
    KVM_REQUIRE_OK(next);
    CHECK((*next)->adopted().size() == 40);
    (*next)->Publish("new-" + prompt + ":40", 0);
    KVM_REQUIRE_OK((*next)->Flush());
    REQUIRE(test::Eventually([&] { return reader->Find("new-" + prompt + ":40").size() == 40; }));
    const ImportCheck import = reader->Import(reader->Find("new-" + prompt + ":40"), reader->Keys("new-" + prompt + ":40"), 0);
    CHECK(import.valid == 40);
    CHECK(import.wrong == 0);
  };
  adopt(kOneIn, "on", 0);
  adopt(0, "off", kOneIn);
}
