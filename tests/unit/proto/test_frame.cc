// Framing: whatever the chunking, frames and their descriptors come out as they went in; what
// breaks the protocol is an error of that connection; no descriptor is left behind.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <vector>

#include "proto/wire/frame.h"
#include "proto/wire/protocol_limits.h"
#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/process/open_fds.h"
#include "tests/support/process/socket_pair.h"

namespace {

using namespace kvm;
using test::RawFrame;
using test::SendRaw;
using test::SocketPair;

UniqueFd OpenNull() {
  UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  REQUIRE(fd);
  return fd;
}

ino_t Inode(int fd) {
  struct stat info {};
  REQUIRE(::fstat(fd, &info) == 0);
  return info.st_ino;
}

// Reads everything that is there; the first error, or the outcome that ended it.
Result<ReadOutcome> ReadAll(FrameReader& reader, int socket, std::vector<Frame>& frames) {
  for (;;) {
    const Result<ReadOutcome> outcome = reader.Fill(socket);
    if (!outcome || *outcome != ReadOutcome::kProgress) return outcome;
    for (;;) {
      Result<std::optional<Frame>> frame = reader.Next();
      if (!frame) return frame.error();
      if (!*frame) break;
      frames.push_back(std::move(**frame));
    }
  }
}

// The error that reading `bytes` (with `fds`) ends in.
Error ErrorOf(std::string_view bytes, const std::vector<int>& fds = {}, bool close = false) {
  SocketPair sockets;
  REQUIRE(SendRaw(sockets.ours.get(), bytes, fds) == static_cast<ssize_t>(bytes.size()));
  if (close) sockets.ours.Reset();
  FrameReader reader;
  std::vector<Frame> frames;
  const Result<ReadOutcome> outcome = ReadAll(reader, sockets.theirs.get(), frames);
  REQUIRE_FALSE(outcome);
  return outcome.error();
}

}  // namespace

TEST_CASE("Frames: payloads of every size up to the limit round trip", "[unit]") {
  SocketPair sockets;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{8}, std::size_t{4095}, std::size_t{65536}, kMaxFrameBytes}) {
    std::string payload(size, '\0');
    for (std::size_t i = 0; i < size; ++i) payload[i] = static_cast<char>(i * 31);
    FrameWriter writer;
    KVM_REQUIRE_OK(writer.Append(payload));
    CHECK(writer.queued_bytes() == size + kFrameHeaderBytes);
    FrameReader reader;
    std::vector<Frame> frames;
    for (bool done = false; !done;) {
      const Result<bool> drained = writer.Drain(sockets.ours.get());
      KVM_REQUIRE_OK(drained);
      KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
      done = *drained;
    }
    REQUIRE(frames.size() == 1);
    CHECK(frames.front().payload == payload);
    CHECK(frames.front().fds.empty());
    CHECK(writer.queued_bytes() == 0);
    CHECK_FALSE(reader.InsideFrame());
  }
}

// Where FrameReader::Fill keeps its buffer, that has more than a megabyte: seen.
TEST_CASE("Frames: a reader that waits for its next frame has no memory of a large one", "[unit]") {
  SocketPair sockets;
  FrameWriter writer;
  KVM_REQUIRE_OK(writer.Append(std::string(kMaxFrameBytes, 'x')));
  FrameReader reader;
  std::vector<Frame> frames;
  std::size_t most = 0;
  while (frames.empty()) {
    KVM_REQUIRE_OK(writer.Drain(sockets.ours.get()));
    KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
    most = std::max(most, reader.held_bytes());
  }
  CHECK(most > kMaxFrameBytes / 2);
  CHECK(reader.held_bytes() <= 64 * 1024);
}

TEST_CASE("Frames: a payload over the limit is refused by the writer and by the reader", "[unit]") {
  FrameWriter writer;
  KVM_CHECK_ERROR(writer.Append(std::string(kMaxFrameBytes + 1, 'x')), Errc::kInvalidArgument, "1048577");
  CHECK(writer.queued_bytes() == 0);
  CHECK(ErrorOf(RawFrame("", kMaxFrameBytes + 1, 0)).code == Errc::kProtocol);
  CHECK(ErrorOf(RawFrame("", 0xffffffff, 0)).code == Errc::kProtocol);
}

TEST_CASE("Frames: more descriptors than the limit are refused by the writer and by the reader", "[unit]") {
  const UniqueFd null = OpenNull();
  FrameWriter writer;
  KVM_CHECK_ERROR(writer.Append("x", std::vector<int>(kMaxFrameFds + 1, null.get())), Errc::kInvalidArgument, "130");
  CHECK(ErrorOf(RawFrame("", 0, kMaxFrameFds + 1), std::vector<int>(kMaxFrameFds + 1, null.get())).code == Errc::kProtocol);
  CHECK(ErrorOf(RawFrame("", 0, 0xffff)).code == Errc::kProtocol);
  CHECK(ErrorOf(RawFrame("", 0, kMaxFrameFds), std::vector<int>(kMaxFrameFds + 1, null.get())).code == Errc::kProtocol);
}

TEST_CASE("Frames: as many descriptors as the limit allows arrive in order", "[unit]") {
  std::vector<UniqueFd> files;
  std::vector<int> fds;
  for (std::size_t i = 0; i < kMaxFrameFds; ++i) {
    files.emplace_back(::memfd_create("kvm:test", MFD_CLOEXEC));
    REQUIRE(files.back());
    fds.push_back(files.back().get());
  }
  SocketPair sockets;
  FrameWriter writer;
  KVM_REQUIRE_OK(writer.Append("all of them", fds));
  KVM_REQUIRE_OK(writer.Drain(sockets.ours.get()));
  FrameReader reader;
  std::vector<Frame> frames;
  KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
  REQUIRE(frames.size() == 1);
  REQUIRE(frames.front().fds.size() == kMaxFrameFds);
  for (std::size_t i = 0; i < kMaxFrameFds; ++i) CHECK(Inode(frames.front().fds[i].get()) == Inode(fds[i]));
}

TEST_CASE("Frames: a wrong mark is refused", "[unit]") {
  CHECK(ErrorOf(RawFrame("abc", 3, 0, 0x4B57)).code == Errc::kProtocol);
  CHECK(ErrorOf("GET / HTTP/1.1\r\n\r\n").code == Errc::kProtocol);
  CHECK(ErrorOf(std::string(64, '\0')).code == Errc::kProtocol);
}

TEST_CASE("Frames: fewer descriptors than announced are refused", "[unit]") {
  const UniqueFd null = OpenNull();
  CHECK(ErrorOf(RawFrame("abc", 3, 1)).message.find("descriptors") != std::string::npos);
  CHECK(ErrorOf(RawFrame("abc", 3, 3), {null.get(), null.get()}).code == Errc::kProtocol);
}

TEST_CASE("Frames: descriptors that no frame announced are refused", "[unit]") {
  const UniqueFd null = OpenNull();
  CHECK(ErrorOf(RawFrame("abc", 3, 0), {null.get()}).code == Errc::kProtocol);
  CHECK(ErrorOf(RawFrame("abc", 3, 1), {null.get(), null.get()}).code == Errc::kProtocol);
}

TEST_CASE("Frames: descriptors piled up without a frame end the connection", "[unit]") {
  const UniqueFd null = OpenNull();
  SocketPair sockets;
  // A frame that never completes, each of its bytes with a load of descriptors.
  REQUIRE(SendRaw(sockets.ours.get(), RawFrame("", 100000, 0)) == 8);
  FrameReader reader;
  std::vector<Frame> frames;
  const int before = test::OpenFds();
  Result<ReadOutcome> outcome = ReadOutcome::kWouldBlock;
  int rounds = 0;
  for (; outcome && rounds < 10; ++rounds) {
    REQUIRE(SendRaw(sockets.ours.get(), "x", std::vector<int>(100, null.get())) == 1);
    outcome = ReadAll(reader, sockets.theirs.get(), frames);
  }
  KVM_CHECK_ERROR(outcome, Errc::kProtocol, "descriptors");
  CHECK(test::OpenFds() - before <= static_cast<int>(3 * kMaxFrameFds));
  reader = FrameReader();
  CHECK(test::OpenFds() == before);
}

TEST_CASE("Frames: closing between two frames is the end, inside one it is an error", "[unit]") {
  const std::string frame = RawFrame("0123456789", 10, 0);
  for (std::size_t length = 0; length <= frame.size(); ++length) {
    SocketPair sockets;
    if (length > 0) REQUIRE(SendRaw(sockets.ours.get(), frame.substr(0, length)) == static_cast<ssize_t>(length));
    sockets.ours.Reset();
    FrameReader reader;
    std::vector<Frame> frames;
    const Result<ReadOutcome> outcome = ReadAll(reader, sockets.theirs.get(), frames);
    INFO("after " << length << " bytes");
    if (length == 0 || length == frame.size()) {
      KVM_REQUIRE_OK(outcome);
      CHECK(*outcome == ReadOutcome::kEnd);
    } else {
      KVM_CHECK_ERROR(outcome, Errc::kProtocol, "inside a frame");
    }
  }
}

TEST_CASE("Frames: sent byte by byte they come out whole, and only then", "[unit]") {
  SocketPair sockets;
  FrameReader reader;
  std::vector<Frame> frames;
  const std::string bytes = RawFrame("first", 5, 0) + RawFrame("", 0, 0) + RawFrame("third", 5, 0);
  std::size_t expected = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    REQUIRE(SendRaw(sockets.ours.get(), bytes.substr(i, 1)) == 1);
    KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
    expected += i + 1 == 13 || i + 1 == 21 || i + 1 == 34;
    CHECK(frames.size() == expected);
    CHECK(reader.InsideFrame() == (i + 1 != 13 && i + 1 != 21 && i + 1 != 34));
  }
  REQUIRE(frames.size() == 3);
  CHECK(frames[0].payload == "first");
  CHECK(frames[1].payload.empty());
  CHECK(frames[2].payload == "third");
}

TEST_CASE("Frames: descriptors that come with the first byte wait for the frame's last byte", "[unit]") {
  const UniqueFd null = OpenNull();
  SocketPair sockets;
  FrameReader reader;
  std::vector<Frame> frames;
  const std::string bytes = RawFrame("payload", 7, 1);
  REQUIRE(SendRaw(sockets.ours.get(), bytes.substr(0, 1), {null.get()}) == 1);
  for (std::size_t i = 1; i < bytes.size(); ++i) {
    KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
    CHECK(frames.empty());
    REQUIRE(SendRaw(sockets.ours.get(), bytes.substr(i, 1)) == 1);
  }
  KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
  REQUIRE(frames.size() == 1);
  REQUIRE(frames.front().fds.size() == 1);
  CHECK(Inode(frames.front().fds.front().get()) == Inode(null.get()));
}

TEST_CASE("Frames: a full socket stops the writer, and it goes on where it stopped", "[unit]") {
  SocketPair sockets(4096);
  const UniqueFd null = OpenNull();
  FrameWriter writer;
  constexpr int kFrames = 200;
  for (int i = 0; i < kFrames; ++i) {
    KVM_REQUIRE_OK(
        writer.Append(std::string(1000, static_cast<char>('a' + i % 26)), i % 10 == 0 ? std::vector<int>{null.get()} : std::vector<int>{}));
  }
  FrameReader reader;
  std::vector<Frame> frames;
  int full = 0;
  for (;;) {
    const std::size_t queued = writer.queued_bytes();
    const Result<bool> drained = writer.Drain(sockets.ours.get());
    KVM_REQUIRE_OK(drained);
    if (*drained) break;
    ++full;
    CHECK(writer.queued_bytes() > 0);
    CHECK(writer.queued_bytes() < queued);
    KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
  }
  KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
  CHECK(full > 1);
  REQUIRE(frames.size() == kFrames);
  for (int i = 0; i < kFrames; ++i) {
    const Frame& frame = frames[static_cast<std::size_t>(i)];
    CHECK(frame.payload == std::string(1000, static_cast<char>('a' + i % 26)));
    CHECK(frame.fds.size() == (i % 10 == 0 ? 1u : 0u));
  }
}

TEST_CASE("Frames: random frames in random chunks with descriptors in between come out as they went in", "[unit]") {
  const int before = test::OpenFds();
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    INFO("seed " << seed);
    test::Random random(seed);
    std::vector<UniqueFd> files;
    for (int i = 0; i < 8; ++i) files.emplace_back(::memfd_create("kvm:test", MFD_CLOEXEC));
    struct Sent {
      std::string payload;
      std::vector<int> fds;
    };
    std::vector<Sent> sent;
    SocketPair sockets(static_cast<int>(random.Between(2048, 65536)));
    FrameWriter writer;
    FrameReader reader;
    std::vector<Frame> frames;
    for (int i = 0; i < 100; ++i) {
      Sent next;
      next.payload.resize(random.OneIn(20) ? random.Below(200000) : random.Below(300));
      for (char& c : next.payload) c = static_cast<char>(random.Next());
      if (random.OneIn(4)) {
        for (std::uint64_t n = random.Between(1, 5); n > 0; --n) next.fds.push_back(random.Pick(files).get());
      }
      KVM_REQUIRE_OK(writer.Append(next.payload, next.fds));
      sent.push_back(std::move(next));
      if (random.OneIn(3)) KVM_REQUIRE_OK(writer.Drain(sockets.ours.get()));
      if (random.OneIn(3)) KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
    }
    for (bool done = false; !done;) {
      const Result<bool> drained = writer.Drain(sockets.ours.get());
      KVM_REQUIRE_OK(drained);
      done = *drained;
      KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
    }
    REQUIRE(frames.size() == sent.size());
    for (std::size_t i = 0; i < sent.size(); ++i) {
      REQUIRE(frames[i].payload == sent[i].payload);
      REQUIRE(frames[i].fds.size() == sent[i].fds.size());
      for (std::size_t f = 0; f < sent[i].fds.size(); ++f) REQUIRE(Inode(frames[i].fds[f].get()) == Inode(sent[i].fds[f]));
    }
  }
  CHECK(test::OpenFds() == before);
}

TEST_CASE("Frames: received descriptors are closed on exec", "[unit]") {
  const UniqueFd null = OpenNull();
  SocketPair sockets;
  FrameWriter writer;
  KVM_REQUIRE_OK(writer.Append("x", {null.get()}));
  KVM_REQUIRE_OK(writer.Drain(sockets.ours.get()));
  FrameReader reader;
  std::vector<Frame> frames;
  KVM_REQUIRE_OK(ReadAll(reader, sockets.theirs.get(), frames));
  REQUIRE((frames.size() == 1 && frames.front().fds.size() == 1));
  CHECK((::fcntl(frames.front().fds.front().get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("Frames: the caller keeps its own descriptors, and the writer's duplicates are closed with it", "[unit]") {
  const UniqueFd null = OpenNull();
  const int before = test::OpenFds();
  {
    FrameWriter writer;
    for (int i = 0; i < 10; ++i) KVM_REQUIRE_OK(writer.Append("never sent", {null.get(), null.get()}));
    CHECK(test::OpenFds() == before + 20);
  }
  CHECK(test::OpenFds() == before);
  CHECK(::fcntl(null.get(), F_GETFD) >= 0);
}

TEST_CASE("Frames: a descriptor that can't be duplicated is an error and queues nothing", "[unit]") {
  const UniqueFd null = OpenNull();
  const int before = test::OpenFds();
  FrameWriter writer;
  KVM_CHECK_ERROR(writer.Append("x", {null.get(), -1}), Errc::kSystem, "duplicate");
  CHECK(writer.queued_bytes() == 0);
  CHECK(test::OpenFds() == before);
}

TEST_CASE("Frames: descriptors of frames that were never taken are closed with the reader", "[unit]") {
  const UniqueFd null = OpenNull();
  const int before = test::OpenFds();
  {
    SocketPair sockets;
    FrameWriter writer;
    for (int i = 0; i < 3; ++i) KVM_REQUIRE_OK(writer.Append("x", {null.get(), null.get()}));
    KVM_REQUIRE_OK(writer.Drain(sockets.ours.get()));
    FrameReader reader;
    KVM_REQUIRE_OK(reader.Fill(sockets.theirs.get()));
  }
  CHECK(test::OpenFds() == before);
}

TEST_CASE("Frames: sending to a closed peer is an error, not a signal", "[unit]") {
  SocketPair sockets;
  sockets.theirs.Reset();
  FrameWriter writer;
  KVM_REQUIRE_OK(writer.Append("x"));
  const Result<bool> drained = writer.Drain(sockets.ours.get());
  KVM_CHECK_ERROR(drained, Errc::kSystem, "sendmsg");
  CHECK(drained.error().sys_errno == EPIPE);
}

TEST_CASE("Frames: reading from a descriptor that is no socket is an error", "[unit]") {
  const UniqueFd null = OpenNull();
  FrameReader reader;
  KVM_CHECK_ERROR(reader.Fill(null.get()), Errc::kSystem, "recvmsg");
}
