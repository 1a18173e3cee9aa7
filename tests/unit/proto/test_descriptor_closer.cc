// What closes in the caller, and what in the closer's threads. Its thread stands still in a close,
// so nothing is timed but a patience that has to pass.
#include "proto/base/descriptor_closer.h"

#include <fcntl.h>

#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "proto/base/peer_fd.h"
#include "proto/shm/sealed_memory.h"
#include "proto/wire/frame.h"
#include "tests/catch.h"
#include "tests/support/process/held_closer.h"
#include "tests/support/process/many_descriptors.h"

namespace kvm {
namespace {

using test::DescriptorsOf;
using test::Eventually;
using test::HeldCloser;

constexpr std::uint32_t kUser = 7, kOther = 8;
constexpr std::size_t kLarge = std::size_t{1} << 20, kSmall = 4096;

OwnedMemory MemoryOf(std::size_t bytes) {
  Result<OwnedMemory> memory = OwnedMemory::Create("test", bytes);
  KVM_REQUIRE_OK(memory);
  return std::move(*memory);
}

UniqueFd Another(int fd) {
  UniqueFd other(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  REQUIRE(other);
  return other;
}

}  // namespace

// Where Close does not look at the size, the small one stays open; where PeerFd has no closer, or
// Close closes memory at once, the large one is gone: seen.
TEST_CASE("DescriptorCloser: much memory is freed in its thread, little and none at once", "[unit]") {
  DescriptorCloser closer;
  std::atomic<int> calls = 0;
  closer.OnClosed([&] { ++calls; });
  HeldCloser held(closer, kUser);
  const OwnedMemory large = MemoryOf(kLarge), small = MemoryOf(kSmall);
  const Result<UniqueFd> reserved = CreateGrantable("test", std::size_t{1} << 30);  // without pages
  KVM_REQUIRE_OK(reserved);
  const FileId of_large = FileIdOf(large.fd()), of_small = FileIdOf(small.fd()), of_reserved = FileIdOf(reserved->get());
  {
    const PeerFd first(Another(large.fd()), &closer, kUser), second(Another(small.fd()), &closer, kUser),
        third(Another(reserved->get()), &closer, kUser);
    CHECK(DescriptorsOf(of_large) == 2);
  }
  CHECK(DescriptorsOf(of_large) == 2);
  CHECK(DescriptorsOf(of_small) == 1);
  CHECK(DescriptorsOf(of_reserved) == 1);
  CHECK(closer.Closing(kUser));
  CHECK_FALSE(closer.Closing(kOther));
  // Another user's does not wait for it.
  PeerFd other(Another(large.fd()), &closer, kOther);
  other = PeerFd();
  CHECK(Eventually([&] { return DescriptorsOf(of_large) == 2 && !closer.Closing(kOther); }));
  held.Release();
  CHECK(Eventually([&] { return DescriptorsOf(of_large) == 1 && !closer.Closing(kUser); }));
  CHECK(Eventually([&] { return calls == 2; }));  // one for each user
}

TEST_CASE("DescriptorCloser: what is taken out of a PeerFd, or moved, is not closed with it", "[unit]") {
  DescriptorCloser closer;
  const OwnedMemory large = MemoryOf(kLarge);
  const FileId file = FileIdOf(large.fd());
  HeldCloser held(closer, kUser);
  UniqueFd taken;
  {
    PeerFd first(Another(large.fd()), &closer, kUser);
    PeerFd moved = std::move(first);
    PeerFd like = moved.Like(Another(large.fd()));
    taken = std::move(moved);
    CHECK_FALSE(moved);
    CHECK(DescriptorsOf(file) == 3);
  }
  CHECK(DescriptorsOf(file) == 3);  // `like` waits for the thread
  taken.Reset();
  CHECK(DescriptorsOf(file) == 2);
}

// Where a reader or a writer closes what it holds itself, one is left: seen.
TEST_CASE("DescriptorCloser: what a reader or writer of frames still holds is closed in its thread", "[unit]") {
  DescriptorCloser closer;
  const OwnedMemory large = MemoryOf(kLarge);
  const FileId file = FileIdOf(large.fd());
  HeldCloser held(closer, kUser);
  int ends[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
  const UniqueFd sending(ends[0]), receiving(ends[1]);
  {
    FrameWriter writer(16, &closer, kUser);
    KVM_REQUIRE_OK(writer.Append("not sent", {large.fd()}));
  }
  CHECK(DescriptorsOf(file) == 2);
  {
    FrameWriter writer;
    KVM_REQUIRE_OK(writer.Append("a frame", {large.fd()}));
    KVM_REQUIRE_OK(writer.Append(std::string(1 << 18, 'x'), {large.fd()}));
    static_cast<void>(writer.Drain(sending.get()));
    FrameReader reader(closer, kUser);
    KVM_REQUIRE_OK(reader.Fill(receiving.get()));
    Result<std::optional<Frame>> frame = reader.Next();
    KVM_REQUIRE_OK(frame);
    REQUIRE((*frame && (*frame)->fds.size() == 1));
    KVM_REQUIRE_OK(reader.Fill(receiving.get()));
    REQUIRE(reader.held_fds() == 1);  // of the frame whose rest has not come
  }
  CHECK(DescriptorsOf(file) == 4);
  held.Release();
  CHECK(Eventually([&] { return DescriptorsOf(file) == 1; }));
}

// Where memory counts as the others do, a user with much of it is refused while it is freed: seen.
TEST_CASE("DescriptorCloser: more is taken from a user whose memory is being freed, up to a limit", "[unit]") {
  const test::ManyDescriptors descriptors;
  if (descriptors.most() < DescriptorCloser::kMostMemory + 256) KVM_SKIP("needs more descriptors than its hard limit");
  DescriptorCloser closer;
  HeldCloser held(closer, kUser);
  const OwnedMemory large = MemoryOf(kLarge);
  const auto hand_over = [&](std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) closer.Close(kUser, Another(large.fd()));
  };
  hand_over(DescriptorCloser::kMostWaiting);
  test::SleepMs(2 * static_cast<int>(DescriptorCloser::kPatience.count()));
  CHECK_FALSE(closer.Behind(kUser));
  hand_over(DescriptorCloser::kMostMemory - DescriptorCloser::kMostWaiting);
  CHECK(closer.Behind(kUser));
  CHECK_FALSE(closer.Behind(kOther));
  held.Release();
  CHECK(Eventually([&] { return !closer.Behind(kUser) && !closer.Closing(kUser); }));
}

}  // namespace kvm
