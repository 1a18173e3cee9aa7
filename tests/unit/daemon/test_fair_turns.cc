// Whose work is done next. Work is counted, time is not.
#include "daemon/server/fair_turns.h"

#include <string>
#include <vector>

#include "daemon/server/user_loads.h"
#include "daemon/system/log.h"
#include "tests/catch.h"

namespace kvm::daemon {
namespace {

struct Turns {
  // A task that costs `units` each time it is called, `calls` times.
  void Add(std::uint32_t user, WorkUnits units, int calls = 1) {
    turns.Add(user, [this, user, units, left = calls](const WorkBudget&) mutable {
      Spend(units);
      done[user] += units;
      order.push_back(user);
      return --left > 0;
    });
  }
  // Work that is done from now on until the task of the user, which is added now, is reached.
  WorkUnits WorkUntilServed(std::uint32_t user) {
    bool served = false;
    turns.Add(user, [&](const WorkBudget&) {
      served = true;
      return false;
    });
    const WorkUnits before = WorkMeter::spent();
    while (!served) turns.Run();
    return WorkMeter::spent() - before;
  }

  std::map<std::uint32_t, WorkUnits> done;
  std::vector<std::uint32_t> order;
  int woken = 0;
  FairTurns turns{[this] { ++woken; }};
};

TEST_CASE("Turns: a user with one task waits for one turn of a user with 64 endless ones", "[unit]") {
  Turns turns;
  for (int connection = 0; connection < 64; ++connection) turns.Add(2001, kSliceUnits, 1'000'000);
  for (int i = 0; i < 10; ++i) CHECK(turns.WorkUntilServed(2002) <= 2 * kSliceUnits);
}

TEST_CASE("Turns: users get the same amount of work, however many tasks they have and whatever one costs", "[unit]") {
  Turns turns;
  for (int connection = 0; connection < 16; ++connection) turns.Add(1, 100, 1'000'000);
  turns.Add(2, kSliceUnits / 2, 1'000'000);
  turns.Add(3, 10 * kSliceUnits, 1'000'000);  // it can't stop in time
  for (int i = 0; i < 3000; ++i) turns.turns.Run();
  const WorkUnits all = turns.done[1] + turns.done[2] + turns.done[3];
  for (const std::uint32_t user : {1u, 2u, 3u}) {
    INFO("user " << user);
    CHECK(turns.done[user] > all / 4);
    CHECK(turns.done[user] < all / 2);
  }
}

TEST_CASE("Turns: a debt makes its user pass, and no other user", "[unit]") {
  Turns turns;
  turns.Add(1, 8 * kSliceUnits, 2);
  turns.turns.Run();
  for (int i = 0; i < 4; ++i) turns.Add(2, kSliceUnits);
  turns.order.clear();
  while (turns.turns.Run()) continue;
  CHECK(turns.order == std::vector<std::uint32_t>{2, 2, 2, 2, 1});
}

TEST_CASE("Turns: with no other user waiting, a user in debt goes on at once", "[unit]") {
  Turns turns;
  turns.Add(1, 100 * kSliceUnits, 3);
  for (int i = 0; i < 3; ++i) turns.turns.Run();
  CHECK(turns.order.size() == 3);
  CHECK(turns.turns.waiting() == 0);
}

TEST_CASE("Turns: the tasks of one user take turns as well", "[unit]") {
  Turns turns;
  std::vector<int> order;
  for (const int task : {1, 2}) {
    turns.turns.Add(7, [&order, task, left = 2](const WorkBudget&) mutable {
      Spend(2 * kSliceUnits);
      order.push_back(task);
      return --left > 0;
    });
  }
  while (turns.turns.Run()) continue;
  CHECK(order == std::vector<int>{1, 2, 1, 2});
}

TEST_CASE("Turns: a task that adds another of its user leaves each of them once in the order", "[unit]") {
  Turns turns;
  turns.turns.Add(1, [&](const WorkBudget&) {
    turns.Add(1, 1);
    return false;
  });
  turns.Add(2, 1);
  while (turns.turns.Run()) continue;
  CHECK(turns.order == std::vector<std::uint32_t>{1, 2});
  CHECK(turns.woken >= 1);
}

TEST_CASE("Loads: what a user's connections hold counts together, and ends with them", "[unit]") {
  Config config;
  config.max_queue_bytes_per_user = 4'000'000;
  config.max_waiting_fds_per_user = 300;
  UserLoads loads(config);
  for (int connection = 0; connection < 4; ++connection) loads.Change(1000, {}, {1'000'000, 100});
  CHECK_FALSE(loads.TooManyBytes(1000));
  CHECK(loads.ManyFds(1000));
  CHECK_FALSE(loads.ManyFds(1001));
  loads.Change(1000, {1'000'000, 100}, {1'000'001, 0});
  CHECK(loads.TooManyBytes(1000));
  const std::string why = loads.WhyTooManyBytes(1000);
  CHECK(why.find("user 1000") != std::string::npos);
  CHECK(why.find("--max-queue-bytes-per-user") != std::string::npos);
  loads.Change(1000, {1'000'001, 0}, {});
  for (int connection = 0; connection < 3; ++connection) loads.Change(1000, {1'000'000, 100}, {});
  CHECK(loads.Of(1000).bytes == 0);
  CHECK(loads.Of(1000).fds == 0);
}

TEST_CASE("Log: a source writes a burst, then its rate, and is told of as left out", "[unit]") {
  LogBucket bucket;
  LogBucket::Time now{};
  now += std::chrono::hours(1);
  int written = 0;
  for (int i = 0; i < 1000; ++i) written += bucket.Take(now, 20);
  CHECK(written == 200);
  CHECK(bucket.TakeLeftOut(now) == 800);
  for (int second = 0; second < 100; ++second) {
    now += std::chrono::seconds(1);
    for (int i = 0; i < 1000; ++i) written += bucket.Take(now, 20);
  }
  CHECK(written == 200 + 100 * 20);
  CHECK(bucket.TakeLeftOut(now) == 100 * 980);
  CHECK_FALSE(bucket.Full(now, 20));
  CHECK(bucket.Full(now + std::chrono::seconds(10), 20));
}

}  // namespace
}  // namespace kvm::daemon
