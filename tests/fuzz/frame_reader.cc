// FrameReader over a socket whose peer sends arbitrary bytes, cut and with descriptors as the input
// says.
//
// Input: u8 chunk size, u8 which chunks bring descriptors, then the stream.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "proto/wire/frame.h"
#include "proto/wire/protocol_limits.h"
#include "tests/fuzz/targets.h"

namespace kvm::fuzz {
namespace {

bool Send(int socket, Bytes bytes, int fds) {
  static const int null = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  iovec vector{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)] = {};
  if (fds > 0) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * static_cast<std::size_t>(fds));
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * static_cast<std::size_t>(fds));
    for (int i = 0; i < fds; ++i) std::memcpy(CMSG_DATA(header) + static_cast<std::size_t>(i) * sizeof(int), &null, sizeof(int));
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(bytes.size());
}

// False once the connection is beyond repair.
bool Read(FrameReader& reader, int socket, std::size_t& payload_bytes, std::size_t& frames) {
  for (;;) {
    const Result<ReadOutcome> outcome = reader.Fill(socket);
    if (!outcome) return false;
    if (*outcome != ReadOutcome::kProgress) return *outcome == ReadOutcome::kWouldBlock;
    for (;;) {
      const Result<std::optional<Frame>> frame = reader.Next();
      if (!frame) return false;
      if (!*frame) break;
      if ((*frame)->payload.size() > kMaxFrameBytes || (*frame)->fds.size() > kMaxFrameFds) Broken("frames keep the limits");
      for (const PeerFd& fd : (*frame)->fds) {
        if (::fcntl(fd.get(), F_GETFD) < 0) Broken("descriptors of a frame are open");
      }
      payload_bytes += (*frame)->payload.size();
      ++frames;
    }
  }
}

}  // namespace

void FrameReaderTarget(Bytes input) {
  Consumer consumer(input);
  const std::size_t chunk = std::size_t{consumer.Take<std::uint8_t>()} + 1;
  const auto with_fds = consumer.Take<std::uint8_t>();
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return;
  UniqueFd ours(ends[0]);
  const UniqueFd theirs(ends[1]);
  FrameReader reader;
  std::size_t payload_bytes = 0, frames = 0;
  Bytes stream = consumer.left();
  const std::size_t total = stream.size();
  bool alive = true;
  for (std::size_t i = 0; alive && !stream.empty(); ++i) {
    const std::size_t step = std::min(chunk, stream.size());
    if (!Send(ours.get(), stream.first(step), (with_fds >> (i % 8)) & 1 ? 1 + with_fds % 4 : 0)) break;
    stream = stream.subspan(step);
    alive = Read(reader, theirs.get(), payload_bytes, frames);
  }
  ours.Reset();
  if (alive) Read(reader, theirs.get(), payload_bytes, frames);
  if (payload_bytes + frames * kFrameHeaderBytes > total) Broken("frames hold no more bytes than came");
}

std::vector<std::string> FrameReaderSeeds() {
  const auto frame = [](const std::string& payload, std::uint16_t fds) {
    std::string out(kFrameHeaderBytes, '\0');
    const auto bytes = static_cast<std::uint32_t>(payload.size());
    std::memcpy(out.data(), &bytes, 4);
    std::memcpy(out.data() + 4, &fds, 2);
    std::memcpy(out.data() + 6, &kFrameMark, 2);
    return out + payload;
  };
  const std::string plain = frame("hello", 0) + frame("", 0) + frame(std::string(300, 'x'), 0);
  return {std::string("\xff\x00", 2) + plain, std::string("\x00\x00", 2) + plain,
          std::string("\xff\x01", 2) + frame("one", 2) + frame("two", 0), std::string("\x03\x01", 2) + frame("abcdefgh", 2)};
}

}  // namespace kvm::fuzz
