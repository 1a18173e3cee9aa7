// A connected pair of non-blocking Unix stream sockets, and raw sends for frames that no
// FrameWriter makes.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "proto/base/unique_fd.h"
#include "proto/wire/frame.h"
#include "tests/catch.h"

namespace kvm::test {

struct SocketPair {
  explicit SocketPair(int send_buffer_bytes = 0) {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0);
    ours.Reset(ends[0]);
    theirs.Reset(ends[1]);
    if (send_buffer_bytes > 0) {
      REQUIRE(::setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUF, &send_buffer_bytes, sizeof(send_buffer_bytes)) == 0);
    }
  }
  UniqueFd ours, theirs;
};

// The bytes of a frame whose header has the arguments' values, whether they are right or wrong.
inline std::string RawFrame(std::string_view payload, std::uint32_t says_bytes, std::uint16_t says_fds, std::uint16_t mark = kFrameMark) {
  std::string out(kFrameHeaderBytes, '\0');
  std::memcpy(out.data(), &says_bytes, 4);
  std::memcpy(out.data() + 4, &says_fds, 2);
  std::memcpy(out.data() + 6, &mark, 2);
  return out.append(payload);
}

// One sendmsg of `bytes` with `fds` attached; `flags`: MSG_OOB for an urgent byte. The number of
// bytes sent, -1 on error.
inline ssize_t SendRaw(int socket, std::string_view bytes, const std::vector<int>& fds = {}, int flags = 0) {
  iovec vector{const_cast<char*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  std::vector<char> control(CMSG_SPACE(sizeof(int) * fds.size()), 0);
  if (!fds.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  return ::sendmsg(socket, &message, MSG_NOSIGNAL | flags);
}

}  // namespace kvm::test
