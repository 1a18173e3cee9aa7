// Workers that mark blocks as being computed and then die, or stop: others wait no longer than they
// want to.
#include <csignal>

#include "tests/catch.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/worker/remote_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using test::KvmdProcess;
using test::RemoteWorker;
using test::Worker;

std::optional<BeingComputed> Seen(Worker& worker, const std::vector<BlockKey>& keys) {
  FindOptions options;
  options.computing = true;
  return worker.client().Find(keys, options).being_computed();
}

}  // namespace

TEST_CASE("Marks: the mark of a worker that is killed ends, and with it the wait", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker computing({.socket = kvmd.socket(), .name = "computing"});
  const auto waiting = test::StartWorker({.socket = kvmd.socket(), .name = "waiting"});
  const std::vector<BlockKey> keys = waiting->Keys("a:30");
  computing.Mark("a:30", 60s);
  REQUIRE(Seen(*waiting, keys));
  computing.Kill();
  CHECK(waiting->client().FindWaiting(keys, {.bound = 1h}).empty());
  CHECK_FALSE(Seen(*waiting, keys));
}

TEST_CASE("Marks: others wait for a worker that is stopped for as long as they want to, and no longer", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker computing({.socket = kvmd.socket(), .name = "computing"});
  const auto waiting = test::StartWorker({.socket = kvmd.socket(), .name = "waiting"});
  const std::vector<BlockKey> keys = waiting->Keys("a:30");
  computing.Mark("a:30", 60s);
  computing.process().Signal(SIGSTOP);
  CHECK(waiting->client().FindWaiting(keys, {.bound = 50ms}).empty());
  REQUIRE(Seen(*waiting, keys));  // so it was the bound that ended the wait
  CHECK(waiting->client().Stats().computing_waits_in_vain == 1);
}

TEST_CASE("Marks: a worker that died in the middle has published what others import", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker computing({.socket = kvmd.socket(), .name = "computing"});
  const auto waiting = test::StartWorker({.socket = kvmd.socket(), .name = "waiting"});
  const std::vector<BlockKey> keys = waiting->Keys("a:20,b:10");
  computing.Mark("a:20,b:10", 60s);
  computing.Publish("a:20", 0);
  computing.Kill();
  const Match match = waiting->client().FindWaiting(keys, {.bound = 1h});
  const test::ImportCheck import = waiting->Import(match, keys, 0);
  CHECK(import.valid == 20);
  CHECK(import.wrong == 0);
}

TEST_CASE("Marks: they end with kvmd, and a wait with them", "[fault]") {
  KvmdProcess kvmd;
  RemoteWorker computing({.socket = kvmd.socket(), .name = "computing"});
  const auto waiting = test::StartWorker({.socket = kvmd.socket(), .name = "waiting"});
  const std::vector<BlockKey> keys = waiting->Keys("a:30");
  computing.Mark("a:30", 60s);
  REQUIRE(Seen(*waiting, keys));
  kvmd.Kill();
  kvmd.Start();
  CHECK(waiting->client().FindWaiting(keys, {.bound = 1h}).empty());
}
