// Two kvmds that start at once, and others who would like to hold one up.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "daemon/server/listener.h"
#include "proto/base/start_lock.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace kvm::test {
namespace {

using daemon::Listener;
using kvm::StartLock;

TEST_CASE("Start lock: a user who may read the socket's directory can't delay kvmd", "[unit]") {
  const TempDir dir;
  const UniqueFd directory(::open(dir.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  REQUIRE(::flock(directory.get(), LOCK_EX) == 0);  // as any user can who may look at it
  KVM_REQUIRE_OK(Listener::Open(dir / "kvmd.sock", "0666"));
}

TEST_CASE("Start lock: no other user can open it, and it is removed when kvmd listens", "[unit]") {
  const TempDir dir;
  const std::string path = dir / "kvmd.sock.lock";
  {
    const mode_t before = ::umask(0);
    const Result<StartLock> lock = StartLock::Take(path);
    ::umask(before);
    KVM_REQUIRE_OK(lock);
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0600);
  }
  CHECK_FALSE(std::filesystem::exists(path));
  const Result<Listener> listener = Listener::Open(dir / "kvmd.sock", "0666");
  KVM_REQUIRE_OK(listener);
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("Start lock: one process at a time has it, however many try however often", "[unit]") {
  const TempDir dir;
  const std::string path = dir / "kvmd.sock.lock";
  std::atomic<int> holders{0}, most{0}, failed{0};
  std::vector<std::thread> starts;
  for (int i = 0; i < 4; ++i) {
    starts.emplace_back([&] {
      for (int round = 0; round < 3000; ++round) {
        const Result<StartLock> lock = StartLock::Take(path);
        if (!lock) {
          ++failed;
          continue;
        }
        const int now = ++holders;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) continue;
        std::this_thread::yield();
        --holders;
      }
    });
  }
  for (std::thread& start : starts) start.join();
  CHECK(most == 1);
  CHECK(failed == 0);
}

TEST_CASE("Start lock: one that stays held is an error that names the process", "[unit]") {
  const TempDir dir;
  const Result<StartLock> held = StartLock::Take(dir / "kvmd.sock.lock");
  KVM_REQUIRE_OK(held);
  KVM_CHECK_ERROR(Listener::Open(dir / "kvmd.sock", "0666"), Errc::kAlreadyExists,
                  "process " + std::to_string(::getpid()) + " has held the lock");
}

TEST_CASE("Start lock: a lock file that a crash has left is used again", "[unit]") {
  const TempDir dir;
  const UniqueFd left(::open((dir / "kvmd.sock.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  REQUIRE(left);
  KVM_REQUIRE_OK(Listener::Open(dir / "kvmd.sock", "0666"));
}

TEST_CASE("Start lock: a file of another user in its place is refused at once", "[unit]") {
  const TempDir dir;
  const std::string path = dir / "kvmd.sock.lock";
  const auto refused = [&](const std::string& reason) {
    const Result<Listener> listener = Listener::Open(dir / "kvmd.sock", "0666");
    REQUIRE_FALSE(listener);
    INFO(listener.error().ToString());
    CHECK(listener.error().message.find(reason) != std::string::npos);
    CHECK(listener.error().message.find(path) != std::string::npos);
  };
  SECTION("a file that others can open") {
    std::ofstream file(path);
    REQUIRE(::chmod(path.c_str(), 0666) == 0);
    refused("remove it");
  }
  SECTION("another user's file") {
    if (::geteuid() != 0) KVM_SKIP("needs root, to make another user's file");
    std::ofstream file(path);
    REQUIRE(::chmod(path.c_str(), 0600) == 0);
    REQUIRE(::chown(path.c_str(), 2001, 2001) == 0);
    refused("of user 2001");
  }
  SECTION("a pipe") {
    REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
    refused("remove it");
  }
  SECTION("a link") {
    REQUIRE(::symlink("/dev/zero", path.c_str()) == 0);
    refused("open the lock");
  }
  SECTION("a directory") {
    REQUIRE(::mkdir(path.c_str(), 0700) == 0);
    refused("open the lock");
  }
}

}  // namespace
}  // namespace kvm::test
