// Objects of a process that has forked: whose they are is known without a system call, in children
// of every kind.
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>

#include "client/connection/owner_process.h"
#include "tests/catch.h"
#include "tests/support/process/fork.h"

namespace {

using namespace kvm;

TEST_CASE("Owner process: a forked child knows that its parent's objects are not its own, and that its own are", "[unit]") {
  const OwnerProcess parents;
  CHECK(parents.Here());
  const test::ChildEnd end = test::RunInChild([&] {
    if (parents.Here()) return 1;
    const OwnerProcess own;
    if (!own.Here()) return 2;
    // And a grandchild that neither of both is.
    return test::RunInChild([&] { return parents.Here() || own.Here() || !OwnerProcess().Here() ? 3 : 0; }).exit_code;
  });
  CHECK(end.exit_code == 0);
  CHECK(parents.Here());
  CHECK(OwnerProcess().Here());
}

TEST_CASE("Owner process: a child that no fork handler has seen knows it as well", "[unit]") {
  const OwnerProcess parents;
  const auto child = static_cast<pid_t>(::syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr));
  if (child == 0) ::_exit(parents.Here() ? 1 : 0);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("Owner process: an object that is left to the parent is not destroyed in the child", "[unit]") {
  static std::shared_ptr<int> object = std::make_shared<int>();  // static, so that it is no leak
  const std::weak_ptr<int> watched = object;
  LeaveToParent(object);
  object.reset();
  object = watched.lock();
  CHECK(object != nullptr);
}

}  // namespace
