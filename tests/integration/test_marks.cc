// Marks of blocks that are being computed, between real workers on a real kvmd.
#include <atomic>
#include <thread>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::KvmdProcess;
using test::Worker;

ComputingMark Mark(Worker& worker, const std::vector<BlockKey>& keys, std::chrono::milliseconds ttl = 30s) {
  ComputingMark mark = worker.client().MarkComputing(keys, ttl);
  KVM_REQUIRE_OK(mark.Wait(After(10s)));
  return mark;
}

std::optional<BeingComputed> Seen(Worker& worker, const std::vector<BlockKey>& keys) {
  FindOptions options;
  options.computing = true;
  return worker.client().Find(keys, options).being_computed();
}

}  // namespace

TEST_CASE("Marks: a lookup shows who computes the missing blocks, and how many there will be", "[integration]") {
  KvmdProcess kvmd;
  const auto computing = Start(kvmd, "computing"), other = Start(kvmd, "other");
  const std::vector<BlockKey> keys = other->Keys("a:30");
  const ComputingMark mark = Mark(*computing, keys);
  const std::optional<BeingComputed> seen = Seen(*other, keys);
  REQUIRE(seen);
  CHECK(seen->blocks == 30);
  CHECK(seen->client_id == computing->client().client_id());
  CHECK_FALSE(seen->own);
  CHECK(seen->left > 0ms);
  CHECK(seen->left <= 30s);
  CHECK(Seen(*computing, keys)->own);
  CHECK_FALSE(other->client().Find(keys).being_computed());  // not asked for
}

TEST_CASE("Marks: of two workers that mark one prompt at once, one computes and the other imports", "[integration]") {
  KvmdProcess kvmd;
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second");
  constexpr const char* kPrompt = "a:30";
  std::atomic<int> computed{0}, imported{0}, wrong{0};
  const auto serve = [&](Worker& worker) {
    const std::vector<BlockKey> keys = worker.Keys(kPrompt);
    ComputingMark mark = worker.client().MarkComputing(keys, 30s);
    static_cast<void>(mark.Wait(After(10s)));
    const Match match = worker.client().FindWaiting(keys, {.bound = 20s});
    if (match.empty()) {
      // Prefill, in two parts
      worker.Publish(kPrompt, 0, {}, 0, 12);
      worker.Publish(kPrompt, 12, {}, 12);
      static_cast<void>(worker.Flush());
      computed += 30;
      return;
    }
    const test::ImportCheck import = worker.Import(match, keys, 0);
    imported += static_cast<int>(import.valid);
    wrong += static_cast<int>(import.wrong);
  };
  std::thread one([&] { serve(*first); }), two([&] { serve(*second); });
  one.join();
  two.join();
  CHECK(computed == 30);
  CHECK(imported == 30);
  CHECK(wrong == 0);
}

TEST_CASE("Marks: without marks, both workers compute the prompt", "[integration]") {
  KvmdProcess kvmd;
  const auto first = Start(kvmd, "first"), second = Start(kvmd, "second");
  const std::vector<BlockKey> keys = first->Keys("a:30");
  CHECK(first->client().FindWaiting(keys, {.bound = 20s}).empty());
  CHECK(second->client().FindWaiting(keys, {.bound = 20s}).empty());
  CHECK(first->client().Stats().computing_waits == 0);
}

TEST_CASE("Marks: a wait ends with the mark, when its owner ends it without a block", "[integration]") {
  KvmdProcess kvmd;
  const auto computing = Start(kvmd, "computing"), waiting = Start(kvmd, "waiting");
  const std::vector<BlockKey> keys = waiting->Keys("a:30");
  ComputingMark mark = Mark(*computing, keys);
  std::thread ender([&] {
    std::this_thread::sleep_for(20ms);
    mark.End();
  });
  const Match match = waiting->client().FindWaiting(keys, {.bound = 1h});
  ender.join();
  CHECK(match.empty());
  CHECK_FALSE(Seen(*waiting, keys));
  CHECK(waiting->client().Stats().computing_waits_in_vain == 1);
}

TEST_CASE("Marks: a wait ends with the mark, when its time is over", "[integration]") {
  KvmdProcess kvmd;
  const auto computing = Start(kvmd, "computing"), waiting = Start(kvmd, "waiting");
  const std::vector<BlockKey> keys = waiting->Keys("a:30");
  const ComputingMark mark = Mark(*computing, keys, 100ms);
  CHECK(waiting->client().FindWaiting(keys, {.bound = 1h}).empty());
  CHECK_FALSE(Seen(*waiting, keys));
}

TEST_CASE("Marks: a worker does not wait for so few blocks as it says", "[integration]") {
  KvmdProcess kvmd;
  const auto computing = Start(kvmd, "computing"), other = Start(kvmd, "other");
  const std::vector<BlockKey> keys = other->Keys("a:30");
  const ComputingMark mark = Mark(*computing, keys);
  CHECK(other->client().FindWaiting(keys, {.bound = 1h, .min_blocks = 31}).empty());
  CHECK(other->client().Stats().computing_waits == 0);
}

TEST_CASE("Marks: a worker does not wait for itself", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker");
  const std::vector<BlockKey> keys = worker->Keys("a:30");
  const ComputingMark mark = Mark(*worker, keys);
  CHECK(worker->client().FindWaiting(keys, {.bound = 1h}).empty());
}

TEST_CASE("Marks: marks on every key cost an honest worker its bound once, not once for each request", "[integration]") {
  KvmdProcess kvmd;
  const auto hostile = Start(kvmd, "hostile"), honest = Start(kvmd, "honest");
  std::vector<ComputingMark> marks;
  for (int i = 0; i < 20; ++i) marks.push_back(Mark(*hostile, honest->Keys("p" + std::to_string(i) + ":30")));
  for (int i = 0; i < 20; ++i) {
    const std::string prompt = "p" + std::to_string(i) + ":30";
    CHECK(honest->client().FindWaiting(honest->Keys(prompt), {.bound = 30ms}).empty());
  }
  CHECK(honest->client().Stats().computing_waits == 1);
  CHECK(honest->client().Stats().computing_waits_in_vain == 1);
  // Blocks that are there are found as ever.
  const auto publisher = Start(kvmd, "publisher");
  publisher->Publish("p3:30", 0);
  KVM_REQUIRE_OK(publisher->Flush());
  CHECK(test::Eventually([&] { return honest->client().FindWaiting(honest->Keys("p3:30"), {.bound = 30ms}).size() == 30; }));
}

TEST_CASE("Marks: while kvmd is away nothing is marked, and nothing waits", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker"), other = Start(kvmd, "other");
  kvmd.Kill();
  REQUIRE(test::Eventually([&] { return worker->client().state() != ConnectionState::kConnected; }));
  const std::vector<BlockKey> keys = worker->Keys("a:30");
  const ComputingMark mark = worker->client().MarkComputing(keys, 30s);
  KVM_CHECK_ERROR(mark.Wait(After(10s)), Errc::kUnavailable, "");
  CHECK(other->client().FindWaiting(keys, {.bound = 1h}).empty());
}

TEST_CASE("Marks: a mark may outlive its client", "[integration]") {
  KvmdProcess kvmd;
  const auto worker = Start(kvmd, "worker"), other = Start(kvmd, "other");
  const std::vector<BlockKey> keys = other->Keys("a:30");
  ComputingMark mark = Mark(*worker, keys);
  worker->DropClient();
  CHECK(test::Eventually([&] { return !Seen(*other, keys); }));
  mark.End();
}
