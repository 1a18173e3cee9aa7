// How many records may be unanswered, and what answers and the end of a connection change.
#include <chrono>
#include <future>
#include <vector>

#include "client/region/publish_window.h"
#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using Turn = PublishWindow::Turn;

// kvmd's end: remembers the messages, and refuses them while it is `away`.
struct Wire {
  std::vector<kvmwire::Publish> sent;
  bool away = false;

  PublishWindow Window(std::size_t max_records) {
    return PublishWindow(
        [this](const kvmwire::ClientMessage& message) {
          if (away) return false;
          sent.push_back(message.publish());
          return true;
        },
        max_records);
  }
};

std::vector<PublishRecord> Records(std::size_t count) { return std::vector<PublishRecord>(count); }

}  // namespace

TEST_CASE("Publish window: records that would exceed it are not sent", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(100);
  CHECK(window.Send({1, 2}, Records(60), Turn::kNew) == 60);
  CHECK(window.Send({1, 2}, Records(41), Turn::kNew) == 0);
  CHECK(window.Send({1, 2}, Records(40), Turn::kNew) == 40);
  CHECK(wire.sent.size() == 2);
}

TEST_CASE("Publish window: a message larger than the window is sent while none is unanswered", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(10);
  CHECK(window.Send({1, 2}, Records(60), Turn::kNew) == 60);
}

TEST_CASE("Publish window: deferred records leave room for new ones", "[unit]") {
  Wire wire;
  constexpr std::size_t kMost = 2 * PublishWindow::kDeferredRecords;
  PublishWindow window = wire.Window(kMost);
  CHECK(window.Send({1, 2}, Records(kMost), Turn::kDeferred) == PublishWindow::kDeferredRecords);
  CHECK(window.Send({1, 2}, Records(kMost), Turn::kNew) == kMost - PublishWindow::kDeferredRecords);
}

TEST_CASE("Publish window: a message names its region and carries no more than a batch", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(10 * kMaxPublishBatch);
  CHECK(window.Send({7, 9}, Records(kMaxPublishBatch + 1), Turn::kNew) == kMaxPublishBatch + 1);
  REQUIRE(wire.sent.size() == 2);
  for (const kvmwire::Publish& message : wire.sent) CHECK((message.region() == 7 && message.region_epoch() == 9));
  CHECK(wire.sent[0].records().size() == kMaxPublishBatch * sizeof(PublishRecord));
  CHECK(wire.sent[1].records().size() == sizeof(PublishRecord));
}

TEST_CASE("Publish window: an answer makes room for what was sent up to its sequence", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(100);
  window.Send({1, 2}, Records(50), Turn::kNew);
  window.Send({1, 2}, Records(30), Turn::kNew);
  window.Send({1, 2}, Records(20), Turn::kNew);
  window.Answered(wire.sent[1].sequence());
  CHECK(window.Send({1, 2}, Records(81), Turn::kNew) == 0);
  CHECK(window.Send({1, 2}, Records(80), Turn::kNew) == 80);
}

TEST_CASE("Publish window: an answer says whether deferred records have room", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(2 * PublishWindow::kDeferredRecords);
  window.Send({1, 2}, Records(kMaxPublishBatch), Turn::kNew);
  window.Send({1, 2}, Records(PublishWindow::kDeferredRecords), Turn::kNew);
  CHECK_FALSE(window.Answered(wire.sent.front().sequence()));
  CHECK(window.Answered(wire.sent.back().sequence()));
}

TEST_CASE("Publish window: a message that was not sent uses up no sequence", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(100);
  window.Send({1, 2}, Records(10), Turn::kNew);
  wire.away = true;
  CHECK(window.Send({1, 2}, Records(10), Turn::kNew) == 0);
  wire.away = false;
  window.Send({1, 2}, Records(10), Turn::kNew);
  REQUIRE(wire.sent.size() == 2);
  CHECK(wire.sent[1].sequence() == wire.sent[0].sequence() + 1);
  window.Answered(wire.sent[1].sequence());
  CHECK(window.Send({1, 2}, Records(100), Turn::kNew) == 100);
}

TEST_CASE("Publish window: a wait for answers ends at its deadline", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(100);
  window.Send({1, 2}, Records(10), Turn::kNew);
  CHECK_FALSE(window.WaitForAnswers(After(1ms)));
  window.Answered(wire.sent[0].sequence());
  CHECK(window.WaitForAnswers(After(0ms)));
}

TEST_CASE("Publish window: the end of a connection answers what was sent, and empties the window", "[unit]") {
  Wire wire;
  PublishWindow window = wire.Window(10);
  window.Send({1, 2}, Records(10), Turn::kNew);
  std::future<bool> waiting = std::async(std::launch::async, [&] { return window.WaitForAnswers(After(60s)); });
  window.ConnectionEnded();
  CHECK(waiting.get());
  CHECK(window.Send({1, 2}, Records(10), Turn::kNew) == 10);
}
