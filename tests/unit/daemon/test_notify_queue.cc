// What is said to a service manager that listens slowly, or not at all.
#include "daemon/system/notify_queue.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::daemon {
namespace {

// Its socket, read by the test.
struct Manager {
  Manager() : socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof(address.sun_path) - 1);
    REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  }
  // The next text; "" if there is none.
  std::string Hear() const {
    char text[512];
    const ssize_t got = ::recv(socket.get(), text, sizeof(text), 0);
    return got < 0 ? "" : std::string(text, static_cast<std::size_t>(got));
  }
  std::vector<std::string> HearAll() const {
    std::vector<std::string> heard;
    for (std::string text = Hear(); !text.empty(); text = Hear()) heard.push_back(text);
    return heard;
  }

  test::TempDir dir;
  const std::string path = dir / "notify";
  UniqueFd socket;
};

// Puts messages in until the socket takes none.
int Fill(NotifyQueue& queue, NotifyQueue::Lane lane) {
  int sent = 0;
  while (!queue.full()) queue.Send(lane, "fill " + std::to_string(sent++));
  return sent;
}

TEST_CASE("Notify queue: what the service manager does not take waits, and goes out in order", "[unit]") {
  const Manager manager;
  NotifyQueue queue(manager.path);
  for (int i = 0; i < 1000; ++i) queue.Send(7, std::to_string(i));
  CHECK(queue.waiting() > 0);
  CHECK_FALSE(queue.Feed(1000));
  std::vector<std::string> heard;
  while (heard.size() < 1000) {
    const std::vector<std::string> more = manager.HearAll();
    REQUIRE_FALSE(more.empty());
    heard.insert(heard.end(), more.begin(), more.end());
    queue.Feed(1000);
  }
  for (int i = 0; i < 1000; ++i) CHECK(heard[static_cast<std::size_t>(i)] == std::to_string(i));
  CHECK(queue.waiting() == 0);
}

TEST_CASE("Notify queue: a user with one message does not wait for another user's thousand, nor kvmd for either", "[unit]") {
  const Manager manager;
  NotifyQueue queue(manager.path);
  Fill(queue, 1);
  for (int i = 0; i < 1000; ++i) queue.Send(1, "flood");
  queue.Send(2, "one");
  queue.Send(NotifyQueue::kOwnLane, "WATCHDOG=1");
  manager.HearAll();
  queue.Feed(4);
  const std::vector<std::string> heard = manager.HearAll();
  REQUIRE(heard.size() == 4);
  CHECK(heard[0] == "WATCHDOG=1");
  CHECK((heard[1] == "one" || heard[2] == "one"));
}

TEST_CASE("Notify queue: what is not to be stored any more is taken back and never sent", "[unit]") {
  const Manager manager;
  NotifyQueue queue(manager.path);
  Fill(queue, 1);
  const std::size_t waiting = queue.waiting();
  for (int cycle = 0; cycle < 100; ++cycle) {
    queue.Send(1, "store", "name");
    CHECK(queue.Cancel(1, "name"));
  }
  CHECK(queue.waiting() == waiting);
  CHECK_FALSE(queue.Cancel(1, "name"));
  CHECK_FALSE(queue.Cancel(2, "name"));
}

TEST_CASE("Notify queue: what must follow a message waits for that, and for no other user's", "[unit]") {
  const Manager manager;
  NotifyQueue queue(manager.path);
  std::vector<std::string> done;
  queue.After(1, [&] { done.push_back("nothing waits"); });
  CHECK(done.size() == 1);
  Fill(queue, 1);
  queue.Send(1, "last");
  queue.After(1, [&] { done.push_back("after the last"); });
  queue.After(2, [&] { done.push_back("of another"); });
  queue.AfterAll([&] { done.push_back("after all"); });
  CHECK(done == std::vector<std::string>{"nothing waits", "of another"});
  manager.HearAll();
  while (!queue.Feed(64)) REQUIRE_FALSE(manager.HearAll().empty());
  CHECK(manager.HearAll().back() == "last");
  CHECK(done == std::vector<std::string>{"nothing waits", "of another", "after the last", "after all"});
}

}  // namespace
}  // namespace kvm::daemon
