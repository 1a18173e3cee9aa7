// Memory that is gone when it is read: a state of the mapping and no signal, while every other
// SIGBUS goes where it would have gone.
#include "proto/shm/memory_guard.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "proto/shm/sealed_memory.h"
#include "tests/catch.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/lost_memory.h"
#include "tests/support/process/sanitized.h"

namespace {

using namespace kvm;

const std::size_t kPage = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));

// A mapping of a file that can be cut under it.
struct Mapping {
  explicit Mapping(std::size_t pages = 4, int protection = PROT_READ | PROT_WRITE)
      : fd(::memfd_create("kvm:test", MFD_CLOEXEC)), bytes(pages * kPage) {
    REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(bytes)) == 0);
    void* const at = ::mmap(nullptr, bytes, protection, MAP_SHARED, fd.get(), 0);
    REQUIRE(at != MAP_FAILED);
    data = static_cast<volatile std::byte*>(at);
    for (std::size_t page = 0; page < pages; ++page) REQUIRE(::pwrite(fd.get(), "x", 1, static_cast<off_t>(page * kPage)) == 1);
  }
  ~Mapping() { ::munmap(const_cast<std::byte*>(data), bytes); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  MemoryGuard Guard(MemoryGuard::Access access = MemoryGuard::Access::kRead) const {
    return {const_cast<const std::byte*>(data), bytes, kPage, access};
  }
  void Cut(std::size_t pages) const { REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(pages * kPage)) == 0); }
  std::byte At(std::size_t page) const { return data[page * kPage]; }

  UniqueFd fd;
  std::size_t bytes;
  volatile std::byte* data;
};

constexpr std::byte kX{'x'}, kNothing{0};

// Handlers of an engine's: leave, with what they were given.
const volatile void* expected_address = nullptr;
void LeaveWithAddress(int signal, siginfo_t* info, void* context) {
  sigset_t blocked;
  ::pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
  const bool as_asked = ::sigismember(&blocked, SIGUSR1) == 1 && ::sigismember(&blocked, SIGBUS) == 1;
  ::_exit(signal == SIGBUS && info->si_addr == expected_address && context != nullptr && as_asked ? 42 : 1);
}

// As Python's faulthandler does: says something, puts back what was there before, and raises the
// signal again.
struct sigaction before_tracer;
void Trace(int signal) {
  if (::write(STDERR_FILENO, "a trace\n", 8) < 0) ::_exit(2);
  ::sigaction(signal, &before_tracer, nullptr);
  ::raise(signal);
}
void InstallTracer() {
  struct sigaction action {};
  action.sa_handler = &Trace;
  action.sa_flags = SA_NODEFER;
  ::sigaction(SIGBUS, &action, &before_tracer);
}

}  // namespace

TEST_CASE("Memory guard: if memory is gone, the whole mapping reads as zeros, and the loss is reported", "[unit]") {
  const Mapping mapping;
  const MemoryGuard guard = mapping.Guard();
  const std::uint64_t before = MemoryGuard::losses();
  CHECK(mapping.At(3) == kX);
  CHECK_FALSE(guard.lost());
  mapping.Cut(2);
  CHECK_FALSE(guard.lost());
  CHECK(mapping.At(3) == kNothing);
  CHECK(guard.lost());
  CHECK(mapping.At(0) == kNothing);
  CHECK(MemoryGuard::losses() == before + 1);
}

TEST_CASE("Memory guard: where this process writes, only the page that is gone is replaced", "[unit]") {
  const Mapping mapping;
  const MemoryGuard guard = mapping.Guard(MemoryGuard::Access::kWrite);
  mapping.Cut(2);
  mapping.data[2 * kPage + 7] = kX;
  CHECK(guard.lost());
  CHECK(mapping.data[2 * kPage + 7] == kX);
  mapping.data[kPage] = std::byte{'y'};
  char seen = 0;
  REQUIRE(::pread(mapping.fd.get(), &seen, 1, static_cast<off_t>(kPage)) == 1);
  CHECK(seen == 'y');
}

TEST_CASE("Memory guard: as many mappings as there are, each is guarded until its guard ends", "[unit]") {
  std::vector<std::unique_ptr<Mapping>> mappings;
  std::vector<MemoryGuard> guards;
  for (int i = 0; i < 700; ++i) {
    mappings.push_back(std::make_unique<Mapping>(1));
    guards.push_back(mappings.back()->Guard());
  }
  guards.erase(guards.begin() + 100, guards.begin() + 200);
  mappings.erase(mappings.begin() + 100, mappings.begin() + 200);
  for (int i = 0; i < 50; ++i) {
    mappings.push_back(std::make_unique<Mapping>(1));
    guards.push_back(mappings.back()->Guard());
  }
  for (std::size_t i = 0; i < mappings.size(); i += 2) {
    mappings[i]->Cut(0);
    CHECK(mappings[i]->At(0) == kNothing);
  }
  for (std::size_t i = 0; i < mappings.size(); ++i) CHECK(guards[i].lost() == (i % 2 == 0));
}

TEST_CASE("Memory guard: threads that read a mapping while it is lost see its bytes, or zeros and the loss", "[unit]") {
  const Mapping mapping(64);
  const MemoryGuard guard = mapping.Guard();
  std::vector<std::thread> readers;
  std::array<bool, 4> right{};
  for (bool& one : right) {
    readers.emplace_back([&] {
      one = true;
      for (int round = 0; round < 2000; ++round) {
        const std::byte seen = mapping.At(static_cast<std::size_t>(round) % 64);
        one = one && (seen == kX || guard.lost());
      }
    });
  }
  mapping.Cut(0);
  for (std::thread& reader : readers) reader.join();
  for (const bool one : right) CHECK(one);
}

TEST_CASE("Memory guard: by default any other fault ends the process", "[unit]") {
  const Mapping guarded, other;
  const test::ChildEnd end = test::RunInChild([&] {
    const MemoryGuard guard = guarded.Guard();
    guarded.Cut(0);
    if (guarded.At(1) != kNothing) return 1;
    other.Cut(0);
    return static_cast<int>(other.At(1));
  });
  CHECK(end.signal == SIGBUS);
}

TEST_CASE("Memory guard: a fault where a guard has ended is another fault", "[unit]") {
  const Mapping mapping;
  const test::ChildEnd end = test::RunInChild([&] {
    MemoryGuard guard = mapping.Guard();
    MemoryGuard moved = std::move(guard);
    moved = MemoryGuard();
    mapping.Cut(0);
    return static_cast<int>(mapping.At(1));
  });
  CHECK(end.signal == SIGBUS);
}

TEST_CASE("Memory guard: the handler that was there before gets other faults as it would have got them", "[unit]") {
  const Mapping guarded, other;
  const test::ChildEnd end = test::RunInChild([&] {
    struct sigaction action {};
    action.sa_sigaction = &LeaveWithAddress;
    action.sa_flags = SA_SIGINFO;
    ::sigaddset(&action.sa_mask, SIGUSR1);
    ::sigaction(SIGBUS, &action, nullptr);
    const MemoryGuard guard = guarded.Guard();
    guarded.Cut(0);
    if (guarded.At(1) != kNothing) return 1;
    other.Cut(0);
    expected_address = other.data + kPage;
    return static_cast<int>(other.At(1));
  });
  CHECK(end.exit_code == 42);
}

TEST_CASE("Memory guard: a handler that was installed later loses no fault, and hides no loss once there is another guard", "[unit]") {
  const Mapping guarded, later, other;
  const auto run = [&](bool fault_elsewhere) {
    return test::RunInChild([&, fault_elsewhere] {
      const MemoryGuard guard = guarded.Guard();
      InstallTracer();
      const MemoryGuard second = later.Guard();
      guarded.Cut(0);
      if (guarded.At(1) != kNothing || !guard.lost()) return 1;
      if (!fault_elsewhere) return 0;
      other.Cut(0);
      return static_cast<int>(other.At(1));
    });
  };
  CHECK(run(false).exit_code == 0);
  // ThreadSanitizer blocks all signals while a handler runs, so the tracer's own one comes too
  // late.
  if (!test::kThreadSanitized) CHECK(run(true).signal == SIGBUS);  // and no end of faults
}

TEST_CASE("Memory guard: a SIGBUS that a process sends is treated as if there were no guard", "[unit]") {
  const Mapping guarded;
  const auto run = [&](void (*action)(int)) {
    return test::RunInChild([&, action] {
      std::signal(SIGBUS, action);
      const MemoryGuard guard = guarded.Guard();
      ::kill(::getpid(), SIGBUS);
      return guard.lost() ? 1 : 7;
    });
  };
  CHECK(run(SIG_DFL).signal == SIGBUS);
  CHECK(run(SIG_IGN).exit_code == 7);
  CHECK(run([](int) { ::_exit(5); }).exit_code == 5);
}

// Where the signal is let through before the guard has noted that the handler has returned, the
// handler is called again and again: seen.
TEST_CASE("Memory guard: a handler that puts back the one before it and raises the signal again ends the process", "[unit]") {
  const Mapping guarded, later;
  const test::ChildEnd end = test::RunInChild([&] {
    static struct sigaction before {};
    static volatile int calls = 0;
    const MemoryGuard guard = guarded.Guard();
    struct sigaction action {};
    action.sa_handler = [](int signal) {
      calls = calls + 1;
      if (calls > 3) ::_exit(9);
      ::sigaction(signal, &before, nullptr);
      ::raise(signal);
    };
    ::sigaction(SIGBUS, &action, &before);
    const MemoryGuard second = later.Guard();
    ::kill(::getpid(), SIGBUS);
    return 7;
  });
  if (!test::kThreadSanitized) CHECK(end.signal == SIGBUS);  // it blocks signals in handlers
}

TEST_CASE("Memory guard: a SIGBUS that a process sends is no loss, whatever address it names", "[unit]") {
  const Mapping guarded;
  const test::ChildEnd end = test::RunInChild([&] {
    std::signal(SIGBUS, [](int) { ::_exit(5); });
    const MemoryGuard guard = guarded.Guard();
    siginfo_t info{};
    info.si_signo = SIGBUS;
    info.si_code = SI_QUEUE;
    info.si_addr = const_cast<std::byte*>(guarded.data);
    ::syscall(SYS_rt_sigqueueinfo, ::getpid(), SIGBUS, &info);
    return guard.lost() ? 1 : 7;
  });
  CHECK(end.exit_code == 5);
}

TEST_CASE("Memory guard: a handler that asked to be called once is called once", "[unit]") {
  const Mapping guarded;
  const auto run = [&](int times) {
    return test::RunInChild([&, times] {
      static volatile int calls = 0;
      struct sigaction action {};
      action.sa_handler = [](int) { calls = calls + 1; };
      action.sa_flags = static_cast<int>(SA_RESETHAND);
      ::sigaction(SIGBUS, &action, nullptr);
      const MemoryGuard guard = guarded.Guard();
      for (int i = 0; i < times; ++i) ::kill(::getpid(), SIGBUS);
      return 40 + calls;
    });
  };
  CHECK(run(1).exit_code == 41);
  CHECK(run(2).signal == SIGBUS);
}

TEST_CASE("Memory guard: a hole in reserved huge pages is a loss for its reader", "[unit]") {
  test::HugeMemory huge(2);
  if (!huge) KVM_SKIP("no huge pages can be reserved here");
  REQUIRE(::fcntl(huge.fd(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
  Result<MappedMemory> mapped = MappedMemory::Attach(huge.fd());
  KVM_REQUIRE_OK(mapped);
  if (!huge.Punch(2 * test::HugeMemory::kPage)) KVM_SKIP("others have reserved huge pages, which would fill the hole");
  const volatile std::byte* bytes = mapped->data();
  CHECK(bytes[test::HugeMemory::kPage + 5] == kNothing);
  CHECK(mapped->lost());
}

TEST_CASE("Memory guard: a hole in reserved huge pages is a loss for the writer of granted memory", "[unit]") {
  test::HugeMemory huge(2);
  if (!huge) KVM_SKIP("no huge pages can be reserved here");
  REQUIRE(::fcntl(huge.fd(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
  Result<OwnedMemory> taken = OwnedMemory::Take(UniqueFd(::dup(huge.fd())), 2 * test::HugeMemory::kPage);
  KVM_REQUIRE_OK(taken);
  taken->Guard();
  if (!huge.Punch(2 * test::HugeMemory::kPage)) KVM_SKIP("others have reserved huge pages, which would fill the hole");
  volatile std::byte* bytes = taken->data();
  bytes[test::HugeMemory::kPage + 5] = kX;
  CHECK(bytes[test::HugeMemory::kPage + 5] == kX);
  CHECK(taken->lost());
}
