// Sealed memory: only its maker can write it (I1), no process can resize it, and memory that is not
// sealed is refused.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <limits>
#include <optional>
#include <string>

#include "proto/shm/sealed_memory.h"
#include "proto/wire/frame.h"
#include "tests/catch.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/process/sanitized.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace {

using namespace kvm;

constexpr std::size_t kBytes = 3 * 4096 + 100;
constexpr int kAllSeals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

OwnedMemory Make(std::size_t size = kBytes, HugePages huge = HugePages::kNever) {
  Result<OwnedMemory> memory = OwnedMemory::Create("kvm:test", size, huge);
  KVM_REQUIRE_OK(memory);
  return std::move(*memory);
}

UniqueFd RawMemfd(std::size_t size, bool allocate, int seals) {
  UniqueFd fd(::memfd_create("kvm:raw", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(fd);
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(size)) == 0);
  if (allocate) REQUIRE(::fallocate(fd.get(), 0, 0, static_cast<off_t>(size)) == 0);
  if (seals != 0) REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

}  // namespace

TEST_CASE("Sealed memory: begins as zeros, of exactly the size asked for", "[unit]") {
  for (const std::size_t size : {std::size_t{1}, kBytes, (std::size_t{4} << 20) + 1}) {
    for (const HugePages huge : {HugePages::kNever, HugePages::kTry}) {
      const OwnedMemory memory = Make(size, huge);
      REQUIRE(memory.size() == size);
      const std::byte* end = memory.data() + size;
      CHECK(std::find_if(memory.data(), const_cast<std::byte*>(end), [](std::byte b) { return b != std::byte{0}; }) == end);
    }
  }
}

TEST_CASE("Sealed memory: a reader sees what the maker writes", "[unit]") {
  const OwnedMemory memory = Make();
  const Result<MappedMemory> reader = MappedMemory::Attach(memory.fd());
  KVM_REQUIRE_OK(reader);
  REQUIRE(reader->size() == kBytes);
  memory.data()[kBytes - 1] = std::byte{42};
  CHECK(reader->data()[kBytes - 1] == std::byte{42});
}

TEST_CASE("Sealed memory: is fully allocated and readable by its owner only", "[unit]") {
  const OwnedMemory memory = Make();
  struct stat info {};
  REQUIRE(::fstat(memory.fd(), &info) == 0);
  CHECK(static_cast<std::size_t>(info.st_blocks) * 512 >= kBytes);
  CHECK((info.st_mode & 0777) == 0400);
  CHECK(::fcntl(memory.fd(), F_GET_SEALS) == kAllSeals);
  CHECK((::fcntl(memory.fd(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("Sealed memory: writing through a reader's mapping is a segmentation fault", "[unit]") {
  const OwnedMemory memory = Make();
  const Result<MappedMemory> reader = MappedMemory::Attach(memory.fd());
  KVM_REQUIRE_OK(reader);
  const test::ChildEnd end = test::RunInChild([&] {
    *const_cast<volatile std::byte*>(reader->data()) = std::byte{1};
    return 0;
  });
  CHECK(end.signal == SIGSEGV);
}

TEST_CASE("Sealed memory: a reader's mapping can't be made writable", "[unit]") {
  const OwnedMemory memory = Make();
  const Result<MappedMemory> reader = MappedMemory::Attach(memory.fd());
  KVM_REQUIRE_OK(reader);
  errno = 0;
  CHECK(::mprotect(const_cast<std::byte*>(reader->data()), reader->size(), PROT_READ | PROT_WRITE) == -1);
  CHECK(errno == EACCES);
}

TEST_CASE("Sealed memory: the descriptor allows no writable mapping and no write, even reopened", "[unit]") {
  const OwnedMemory memory = Make();
  errno = 0;
  CHECK(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory.fd(), 0) == MAP_FAILED);
  CHECK(errno == EPERM);
  CHECK(::pwrite(memory.fd(), "x", 1, 0) == -1);
  // As root the mode does not stop this open; the seal still stops what comes after.
  const UniqueFd reopened(::open(("/proc/self/fd/" + std::to_string(memory.fd())).c_str(), O_RDWR));
  if (reopened) {
    CHECK(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, reopened.get(), 0) == MAP_FAILED);
    CHECK(::pwrite(reopened.get(), "x", 1, 0) == -1);
  }
  CHECK(memory.data()[0] == std::byte{0});
}

TEST_CASE("Sealed memory: can't be resized, punched or sealed further", "[unit]") {
  const OwnedMemory memory = Make();
  for (const off_t size : {off_t{0}, off_t{4096}, off_t{1} << 20}) {
    errno = 0;
    CHECK(::ftruncate(memory.fd(), size) == -1);
    CHECK(errno == EPERM);
  }
  CHECK(::fallocate(memory.fd(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == -1);
  CHECK(::fcntl(memory.fd(), F_ADD_SEALS, F_SEAL_WRITE) == -1);
}

TEST_CASE("Sealed memory: memory that could change its size is refused", "[unit]") {
  for (const int missing : {F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL, kAllSeals}) {
    const UniqueFd fd = RawMemfd(kBytes, true, kAllSeals & ~missing);
    INFO("without seal " << missing);
    KVM_CHECK_ERROR(MappedMemory::Attach(fd.get()), Errc::kPermissionDenied, "sealed");
    KVM_CHECK_ERROR(CheckSealed(fd.get(), 1), Errc::kPermissionDenied, "sealed");
  }
  const UniqueFd complete = RawMemfd(kBytes, true, kAllSeals);
  KVM_REQUIRE_OK(MappedMemory::Attach(complete.get()));
}

TEST_CASE("Sealed memory: what is no memfd is refused", "[unit]") {
  const UniqueFd file(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const UniqueFd a(ends[0]), b(ends[1]);
  for (const int fd : {file.get(), a.get(), -1, 1 << 20}) {
    INFO("descriptor " << fd);
    KVM_CHECK_ERROR(MappedMemory::Attach(fd), Errc::kPermissionDenied, "memfd");
  }
}

TEST_CASE("Sealed memory: memory that is not fully allocated is refused", "[unit]") {
  const UniqueFd sparse = RawMemfd(std::size_t{1} << 20, false, kAllSeals);
  KVM_CHECK_ERROR(MappedMemory::Attach(sparse.get()), Errc::kInvalidArgument, "allocated");
  UniqueFd hole = RawMemfd(std::size_t{1} << 20, true, 0);
  REQUIRE(::fallocate(hole.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 65536, 4096) == 0);
  REQUIRE(::fcntl(hole.get(), F_ADD_SEALS, kAllSeals) == 0);
  KVM_CHECK_ERROR(MappedMemory::Attach(hole.get()), Errc::kInvalidArgument, "allocated");
}

TEST_CASE("Sealed memory: too small and empty memory is refused", "[unit]") {
  const OwnedMemory memory = Make();
  KVM_REQUIRE_OK(MappedMemory::Attach(memory.fd(), kBytes));
  KVM_CHECK_ERROR(MappedMemory::Attach(memory.fd(), kBytes + 1), Errc::kInvalidArgument, "needed");
  const UniqueFd empty = RawMemfd(0, false, kAllSeals);
  KVM_CHECK_ERROR(MappedMemory::Attach(empty.get(), 0), Errc::kInvalidArgument, "0 bytes");
}

TEST_CASE("Sealed memory: a size of 0 and a size beyond the machine are errors, not crashes", "[unit]") {
  KVM_CHECK_ERROR(OwnedMemory::Create("kvm:test", 0), Errc::kInvalidArgument, "size is 0");
  for (const std::size_t size :
       {std::size_t{1} << 45, std::size_t{1} << 60, std::numeric_limits<std::size_t>::max() / 2, std::numeric_limits<std::size_t>::max()}) {
    for (const HugePages huge : {HugePages::kNever, HugePages::kTry}) {
      const int fds = test::OpenFds();
      const Result<OwnedMemory> memory = OwnedMemory::Create("kvm:test", size, huge);
      REQUIRE_FALSE(memory);
      CHECK(memory.error().code == Errc::kResourceExhausted);
      CHECK(memory.error().sys_errno != 0);
      CHECK(test::OpenFds() == fds);
    }
  }
}

TEST_CASE("Sealed memory: a name that memfd_create refuses is an error", "[unit]") {
  KVM_CHECK_ERROR(OwnedMemory::Create(std::string(300, 'n'), 4096), Errc::kSystem, "memfd_create");
}

TEST_CASE("Sealed memory: the owner's writes are visible to a forked reader", "[unit]") {
  const OwnedMemory memory = Make();
  const Result<MappedMemory> reader = MappedMemory::Attach(memory.fd());
  KVM_REQUIRE_OK(reader);
  std::memcpy(memory.data(), "from the owner", 15);
  const test::ChildEnd end = test::RunInChild([&] { return std::memcmp(reader->data(), "from the owner", 15) == 0 ? 0 : 1; });
  CHECK(end.exit_code == 0);
}

TEST_CASE("Shared memory: a forked child has none of its parent's writable mappings", "[unit]") {
  const Result<UniqueFd> granted = CreateGrantable("kvm:granted", kBytes);
  KVM_REQUIRE_OK(granted);
  const Result<OwnedMemory> taken = OwnedMemory::Take(UniqueFd(::fcntl(granted->get(), F_DUPFD_CLOEXEC, 0)), kBytes);
  KVM_REQUIRE_OK(taken);
  const OwnedMemory made = Make(), huge = *OwnedMemory::Create("kvm:huge", std::size_t{4} << 20, HugePages::kTry);
  for (const OwnedMemory* memory : {&made, &huge, &*taken}) {
    memory->data()[0] = std::byte{1};
    const test::ChildEnd end = test::RunInChild([&] {
      *const_cast<volatile std::byte*>(memory->data()) = std::byte{2};
      return 0;
    });
    // ThreadSanitizer starts a thread in the child, and the kernel may put its stack where a large
    // mapping was.
    if (!test::kThreadSanitized) CHECK(end.signal == SIGSEGV);
    CHECK(memory->data()[0] == std::byte{1});
  }
}

TEST_CASE("Sealed memory: a descriptor that travelled over a socket maps, and the maker may be gone", "[unit]") {
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
  const UniqueFd a(ends[0]), b(ends[1]);
  {
    const OwnedMemory memory = Make();
    std::memcpy(memory.data(), "still here", 11);
    FrameWriter writer;
    KVM_REQUIRE_OK(writer.Append("memory", {memory.fd()}));
    KVM_REQUIRE_OK(writer.Drain(a.get()));
  }
  FrameReader reader;
  KVM_REQUIRE_OK(reader.Fill(b.get()));
  Result<std::optional<Frame>> frame = reader.Next();
  KVM_REQUIRE_OK(frame);
  REQUIRE((*frame && (*frame)->fds.size() == 1));
  const Result<MappedMemory> mapped = MappedMemory::Attach((*frame)->fds.front().get());
  KVM_REQUIRE_OK(mapped);
  (*frame)->fds.clear();
  CHECK(std::memcmp(mapped->data(), "still here", 11) == 0);
}

TEST_CASE("Sealed memory: pointers stay good when owner and reader are moved", "[unit]") {
  OwnedMemory memory = Make();
  Result<MappedMemory> reader = MappedMemory::Attach(memory.fd());
  KVM_REQUIRE_OK(reader);
  std::byte* written = memory.data();
  const std::byte* read = reader->data();
  const OwnedMemory moved = std::move(memory);
  const MappedMemory moved_reader = std::move(*reader);
  *written = std::byte{7};
  CHECK(moved.data() == written);
  CHECK(moved_reader.data() == read);
  CHECK(*read == std::byte{7});
}

TEST_CASE("Granted memory: its owner writes it, the next owner writes it too, and readers read it", "[unit]") {
  Result<UniqueFd> made = CreateGrantable("kvm:granted", kBytes);
  KVM_REQUIRE_OK(made);
  Result<UniqueFd> read_only = ReopenReadOnly(made->get());
  KVM_REQUIRE_OK(read_only);
  const UniqueFd kept(::fcntl(made->get(), F_DUPFD_CLOEXEC, 0));
  const std::byte* read = nullptr;
  std::optional<MappedMemory> reader;
  {
    Result<OwnedMemory> first = OwnedMemory::Take(std::move(*made), kBytes);
    KVM_REQUIRE_OK(first);
    std::memcpy(first->data(), "first", 6);
    Result<MappedMemory> mapped = MappedMemory::Attach(read_only->get(), kBytes);
    KVM_REQUIRE_OK(mapped);
    reader = std::move(*mapped);
    read = reader->data();
    CHECK(std::memcmp(read, "first", 6) == 0);
  }
  Result<OwnedMemory> second = OwnedMemory::Take(UniqueFd(::fcntl(kept.get(), F_DUPFD_CLOEXEC, 0)), kBytes);
  KVM_REQUIRE_OK(second);
  CHECK(std::memcmp(second->data(), "first", 6) == 0);
  std::memcpy(second->data(), "second", 7);
  CHECK(std::memcmp(read, "second", 7) == 0);
}

TEST_CASE("Granted memory: a read-only descriptor gives no writable mapping", "[unit]") {
  const Result<UniqueFd> made = CreateGrantable("kvm:granted", kBytes);
  KVM_REQUIRE_OK(made);
  Result<UniqueFd> read_only = ReopenReadOnly(made->get());
  KVM_REQUIRE_OK(read_only);
  CHECK(::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, read_only->get(), 0) == MAP_FAILED);
  CHECK(::pwrite(read_only->get(), "x", 1, 0) == -1);
  KVM_CHECK_ERROR(OwnedMemory::Take(std::move(*read_only), kBytes), Errc::kPermissionDenied, "read-only");
}

TEST_CASE("Granted memory: another user can't make a writable descriptor of a read-only one", "[unit]") {
  if (::geteuid() != 0) return;  // only root can become another user
  const Result<UniqueFd> made = CreateGrantable("kvm:granted", kBytes);
  KVM_REQUIRE_OK(made);
  const Result<UniqueFd> read_only = ReopenReadOnly(made->get());
  KVM_REQUIRE_OK(read_only);
  const std::string path = "/proc/self/fd/" + std::to_string(read_only->get());
  const test::ChildEnd end = test::RunInChild([&] {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 1;
    if (::open(path.c_str(), O_RDWR) >= 0) return 2;
    if (::fchmod(read_only->get(), 0666) == 0) return 3;
    return 0;
  });
  CHECK(end.exit_code == 0);
}

TEST_CASE("Granted memory: can't be resized, nor sealed against its next owner", "[unit]") {
  const Result<UniqueFd> made = CreateGrantable("kvm:granted", kBytes);
  KVM_REQUIRE_OK(made);
  CHECK(::ftruncate(made->get(), 4096) == -1);
  CHECK(::ftruncate(made->get(), 1 << 20) == -1);
  CHECK(::fcntl(made->get(), F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == -1);
  KVM_CHECK_ERROR(OwnedMemory::Take(UniqueFd(::fcntl(made->get(), F_DUPFD_CLOEXEC, 0)), kBytes + 1), Errc::kInvalidArgument, "it has");
  const UniqueFd unsealed = RawMemfd(kBytes, true, 0);
  KVM_CHECK_ERROR(OwnedMemory::Take(UniqueFd(::fcntl(unsealed.get(), F_DUPFD_CLOEXEC, 0)), kBytes), Errc::kPermissionDenied, "sealed");
  KVM_CHECK_ERROR(CreateGrantable("kvm:granted", 0), Errc::kInvalidArgument, "size is 0");
  KVM_CHECK_ERROR(CreateGrantable("kvm:granted", std::size_t{1} << 50), Errc::kResourceExhausted, "this machine has");
}

TEST_CASE("Shared memory: seals, owner and descriptor tell which processes can write it", "[unit]") {
  const OwnedMemory sealed = Make();
  CHECK(WritersOf(sealed.fd()) == Writers::kNobody);
  const Result<UniqueFd> granted = CreateGrantable("kvm:granted", kBytes);
  KVM_REQUIRE_OK(granted);
  CHECK(WritersOf(granted->get()) == Writers::kHolders);
  const Result<UniqueFd> read_only = ReopenReadOnly(granted->get());
  KVM_REQUIRE_OK(read_only);
  CHECK(WritersOf(read_only->get()) == Writers::kAnybody);
  // Mode 0777
  CHECK(WritersOf(RawMemfd(kBytes, true, kAllSeals & ~F_SEAL_FUTURE_WRITE).get()) == Writers::kAnybody);
  CHECK(WritersOf(-1) == Writers::kAnybody);
}

TEST_CASE("Sealed memory: neither descriptors nor mappings are left behind", "[unit]") {
  const int before = test::OpenFds();
  for (int round = 0; round < 20; ++round) {
    const OwnedMemory memory = Make();
    KVM_REQUIRE_OK(MappedMemory::Attach(memory.fd()));
    static_cast<void>(MappedMemory::Attach(memory.fd(), 1 << 30));
  }
  CHECK(test::OpenFds() == before);
}
