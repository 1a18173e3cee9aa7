// Frames where descriptors are short: at the reader, at the writer, and in flight.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "proto/wire/frame.h"
#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"
#include "tests/support/process/few_descriptors.h"
#include "tests/support/process/fork.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/process/sanitized.h"
#include "tests/support/process/socket_pair.h"

namespace {

using namespace kvm;
using test::FewDescriptors;
using test::SocketPair;

UniqueFd OpenNull() {
  UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  REQUIRE(fd);
  return fd;
}

// All frames that are there; the test fails where the connection breaks.
std::vector<Frame> ReadFrames(FrameReader& reader, int socket) {
  std::vector<Frame> frames;
  for (;;) {
    const Result<ReadOutcome> outcome = reader.Fill(socket);
    KVM_REQUIRE_OK(outcome);
    if (*outcome != ReadOutcome::kProgress) return frames;
    for (;;) {
      Result<std::optional<Frame>> frame = reader.Next();
      KVM_REQUIRE_OK(frame);
      if (!*frame) break;
      frames.push_back(std::move(**frame));
    }
  }
}

}  // namespace

TEST_CASE("Frames: a reader that is out of descriptors reports it with its limit, and reads the next frame", "[unit]") {
  const UniqueFd null = OpenNull();
  SocketPair sockets;
  FrameWriter writer;
  KVM_REQUIRE_OK(writer.Append("before"));
  KVM_REQUIRE_OK(writer.Append("three", {null.get(), null.get(), null.get()}));
  KVM_REQUIRE_OK(writer.Append("between"));
  KVM_REQUIRE_OK(writer.Append("one", {null.get()}));
  KVM_REQUIRE_OK(writer.Append("after"));
  KVM_REQUIRE_OK(writer.Drain(sockets.ours.get()));
  for (const int left : {0, 2}) {
    DYNAMIC_SECTION(left << " left") {
      const int before = test::OpenFds();
      FrameReader reader;
      std::vector<Frame> frames;
      std::string says;
      {
        const FewDescriptors few(left);
        says = few.Says();
        frames = ReadFrames(reader, sockets.theirs.get());
      }
      REQUIRE(frames.size() == 5);
      CHECK(frames[0].payload == "before");
      CHECK(frames[1].payload == "three");
      REQUIRE(frames[1].lost_fds);
      CHECK(frames[1].lost_fds->code == Errc::kResourceExhausted);
      CHECK(frames[1].lost_fds->message == says);
      CHECK(IsOutOfDescriptors(*frames[1].lost_fds));
      CHECK(frames[1].fds.empty());
      CHECK_FALSE(frames[2].lost_fds);
      CHECK(frames[3].payload == "one");
      // With two left the frame before gave its own back.
      CHECK(frames[3].fds.size() == (left > 0 ? 1u : 0u));
      CHECK(frames[3].lost_fds.has_value() == (left == 0));
      CHECK(frames[4].payload == "after");
      frames.clear();
      CHECK(test::OpenFds() == before);

      KVM_REQUIRE_OK(writer.Append("again", {null.get(), null.get()}));
      KVM_REQUIRE_OK(writer.Drain(sockets.ours.get()));
      frames = ReadFrames(reader, sockets.theirs.get());
      REQUIRE(frames.size() == 1);
      CHECK(frames[0].fds.size() == 2);
    }
  }
}

TEST_CASE("Frames: more descriptors than announced are the sender's fault, however many", "[unit]") {
  const UniqueFd null = OpenNull();
  for (const std::size_t sent : {kMaxFrameFds + 1, std::size_t{253}}) {
    SocketPair sockets;
    REQUIRE(test::SendRaw(sockets.ours.get(), test::RawFrame("x", 1, kMaxFrameFds), std::vector<int>(sent, null.get())) > 0);
    FrameReader reader;
    KVM_REQUIRE_OK(reader.Fill(sockets.theirs.get()));
    KVM_CHECK_ERROR(reader.Next(), Errc::kProtocol, "no frame announced");
  }
}

TEST_CASE("Frames: a writer without descriptors still sends, and queues nothing that would need some", "[unit]") {
  if (test::kAddressSanitized) KVM_SKIP("UBSan's check of types needs descriptors of its own");
  const UniqueFd null = OpenNull();
  SocketPair sockets(4096);
  FrameWriter writer;
  FrameReader reader;
  {
    const FewDescriptors few(0);
    const Result<bool> sent = writer.Send(sockets.ours.get(), "at once", {null.get(), null.get()});
    KVM_REQUIRE_OK(sent);
    CHECK(*sent);
    KVM_REQUIRE_OK(writer.Append(std::string(100'000, 'x')));
    const Result<bool> full = writer.Drain(sockets.ours.get());
    KVM_REQUIRE_OK(full);
    REQUIRE_FALSE(*full);
    const std::size_t queued = writer.queued_bytes();
    KVM_CHECK_ERROR(writer.Send(sockets.ours.get(), "late", {null.get()}), Errc::kResourceExhausted, few.Says());
    KVM_CHECK_ERROR(writer.Append("late", {null.get()}), Errc::kResourceExhausted, few.Says());
    CHECK(writer.queued_bytes() == queued);
    CHECK(writer.queued_fds() == 0);
  }
  std::vector<Frame> frames = ReadFrames(reader, sockets.theirs.get());
  for (bool done = false; !done;) {
    const Result<bool> drained = writer.Drain(sockets.ours.get());
    KVM_REQUIRE_OK(drained);
    done = *drained;
    for (Frame& frame : ReadFrames(reader, sockets.theirs.get())) frames.push_back(std::move(frame));
  }
  REQUIRE(frames.size() == 2);
  CHECK(frames[0].fds.size() == 2);
  CHECK(frames[1].payload.size() == 100'000);
}

TEST_CASE("Frames: no more descriptors are in flight than may be, until the peer has read them", "[unit]") {
  const UniqueFd null = OpenNull();
  SocketPair sockets;
  FrameWriter writer(10);
  for (int i = 0; i < 5; ++i) KVM_REQUIRE_OK(writer.Append("four", std::vector<int>(4, null.get())));
  KVM_REQUIRE_OK(writer.Append("too many, but alone", std::vector<int>(20, null.get())));
  FrameReader reader;
  std::vector<std::size_t> at_once;
  for (bool done = false; !done;) {
    const Result<bool> drained = writer.Drain(sockets.ours.get());
    KVM_REQUIRE_OK(drained);
    done = *drained;
    CHECK((writer.held_back() == FrameWriter::HeldBack::kReader) == !done);
    at_once.push_back(0);
    for (const Frame& frame : ReadFrames(reader, sockets.theirs.get())) at_once.back() += frame.fds.size();
  }
  CHECK(at_once == std::vector<std::size_t>{8, 8, 4, 20});
}

TEST_CASE("Frames: descriptors beyond the kernel's limit for this user stay queued until receivers have read others", "[unit]") {
  const test::ChildEnd end = test::RunInChild([] {
    const rlimit few{64, 64};
    // The kernel exempts root, and counts a user's descriptors over all of its processes: a user of
    // this test's own.
    const auto user = static_cast<uid_t>(20'000 + ::getpid() % 40'000);
    if (::geteuid() == 0 && (::setgid(user) != 0 || ::setuid(user) != 0)) return 1;
    int unread[2], ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, unread) != 0) return 2;
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) != 0) return 2;
    if (::setrlimit(RLIMIT_NOFILE, &few) != 0) return 3;
    FrameWriter filling, writer;
    int sent = 0;
    while (filling.Send(unread[0], "unread", std::vector<int>(20, 0)).value() && ++sent < 100) continue;
    if (filling.held_back() != FrameWriter::HeldBack::kKernel) return 4;
    if (writer.Send(ends[0], "others'", {0}).value() || writer.held_back() != FrameWriter::HeldBack::kKernel) return 5;
    UniqueFd reader(unread[1]);
    reader.Reset();  // what it has not read is in flight no more
    for (int tries = 0; tries < 30'000; ++tries) {
      if (writer.Drain(ends[0]).value()) return 0;
      ::usleep(1000);
    }
    return 6;
  });
  CHECK(end.signal == 0);
  CHECK(end.exit_code == 0);
}
