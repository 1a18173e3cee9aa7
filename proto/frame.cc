#include "proto/frame.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "proto/protocol_limits.h"

namespace kvm {
namespace {

constexpr std::size_t kMaxReadBytes = 256 * 1024;
constexpr std::size_t kCoalesceBytes = 64 * 1024;
constexpr std::size_t kMaxPiecesPerSend = 16;

struct FrameHeader {
  std::uint32_t payload_bytes;
  std::uint16_t fd_count;
  std::uint16_t mark;
};
static_assert(sizeof(FrameHeader) == kFrameHeaderBytes);

using ControlBuffer = std::array<char, CMSG_SPACE(sizeof(int) * kMaxFrameFds)>;

}  // namespace

Result<ReadOutcome> FrameReader::Fill(int socket) {
  if (begin_ == end_) begin_ = end_ = 0;
  if (begin_ > 0 && buffer_.size() - end_ < read_bytes_) {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (buffer_.size() - end_ < read_bytes_) buffer_.resize(end_ + read_bytes_);
  iovec vector{buffer_.data() + end_, buffer_.size() - end_};
  alignas(cmsghdr) ControlBuffer control;
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return ReadOutcome::kWouldBlock;
    return SystemError("recvmsg");
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      fds_.emplace_back(fd);
    }
  }
  if (message.msg_flags & MSG_CTRUNC) return MakeError(Errc::kProtocol, "more descriptors than a frame may carry");
  if (fds_.size() > 2 * kMaxFrameFds) return MakeError(Errc::kProtocol, "descriptors that belong to no frame");
  if (got == 0) {
    if (InsideFrame()) return MakeError(Errc::kProtocol, "connection ended inside a frame");
    return ReadOutcome::kEnd;
  }
  if (static_cast<std::size_t>(got) == vector.iov_len) read_bytes_ = std::min(2 * read_bytes_, kMaxReadBytes);
  end_ += static_cast<std::size_t>(got);
  return ReadOutcome::kProgress;
}

Result<std::optional<Frame>> FrameReader::Next() {
  if (end_ - begin_ < kFrameHeaderBytes) return std::optional<Frame>();
  FrameHeader header;
  std::memcpy(&header, buffer_.data() + begin_, sizeof(header));
  if (header.mark != kFrameMark) return MakeError(Errc::kProtocol, "not a kvmd frame");
  if (header.payload_bytes > kMaxFrameBytes) {
    return MakeError(Errc::kProtocol,
                     "frame of " + std::to_string(header.payload_bytes) + " bytes, the limit is " + std::to_string(kMaxFrameBytes));
  }
  if (header.fd_count > kMaxFrameFds)
    return MakeError(Errc::kProtocol, "frame announces " + std::to_string(header.fd_count) + " descriptors");
  if (end_ - begin_ < kFrameHeaderBytes + header.payload_bytes) return std::optional<Frame>();
  // The kernel delivers descriptors with the frame's first byte, so all of them are here by now.
  if (fds_.size() < header.fd_count) {
    return MakeError(Errc::kProtocol,
                     "frame announces " + std::to_string(header.fd_count) + " descriptors, " + std::to_string(fds_.size()) + " came");
  }
  Frame frame;
  frame.payload.assign(buffer_.data() + begin_ + kFrameHeaderBytes, header.payload_bytes);
  for (std::uint16_t i = 0; i < header.fd_count; ++i) {
    frame.fds.push_back(std::move(fds_.front()));
    fds_.pop_front();
  }
  begin_ += kFrameHeaderBytes + header.payload_bytes;
  if (begin_ == end_ && !fds_.empty()) return MakeError(Errc::kProtocol, "descriptors that no frame announced");
  return std::optional<Frame>(std::move(frame));
}

Status FrameWriter::Append(std::string_view payload, const std::vector<int>& fds) {
  if (payload.size() > kMaxFrameBytes) {
    return MakeError(Errc::kInvalidArgument,
                     "message of " + std::to_string(payload.size()) + " bytes, the limit is " + std::to_string(kMaxFrameBytes));
  }
  if (fds.size() > kMaxFrameFds) {
    return MakeError(Errc::kInvalidArgument,
                     std::to_string(fds.size()) + " descriptors in one message, the limit is " + std::to_string(kMaxFrameFds));
  }
  const FrameHeader header{static_cast<std::uint32_t>(payload.size()), static_cast<std::uint16_t>(fds.size()), kFrameMark};
  // Small frames without descriptors are sent together.
  const bool coalesce = fds.empty() && !pieces_.empty() && pieces_.back().bytes.size() + payload.size() < kCoalesceBytes;
  if (!coalesce) {
    Piece piece;
    for (const int fd : fds) {
      piece.fds.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
      if (!piece.fds.back()) return SystemError("duplicate a descriptor");
    }
    queued_fds_ += piece.fds.size();
    pieces_.push_back(std::move(piece));
  }
  std::string& bytes = pieces_.back().bytes;
  bytes.reserve(bytes.size() + sizeof(header) + payload.size());
  bytes.append(reinterpret_cast<const char*>(&header), sizeof(header));
  bytes.append(payload);
  queued_bytes_ += sizeof(header) + payload.size();
  return {};
}

Result<bool> FrameWriter::Drain(int socket) {
  while (!pieces_.empty()) {
    // Pieces with descriptors start a sendmsg of their own, so that those go with its first byte.
    iovec vectors[kMaxPiecesPerSend];
    std::size_t used = 0;
    for (Piece& piece : pieces_) {
      if (used == kMaxPiecesPerSend || (used > 0 && !piece.fds.empty())) break;
      vectors[used++] = {piece.bytes.data() + piece.sent, piece.bytes.size() - piece.sent};
    }
    msghdr message{};
    message.msg_iov = vectors;
    message.msg_iovlen = used;
    alignas(cmsghdr) ControlBuffer control;
    const std::vector<UniqueFd>& fds = pieces_.front().fds;
    if (!fds.empty()) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
      std::memset(control.data(), 0, message.msg_controllen);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
      for (std::size_t i = 0; i < fds.size(); ++i) {
        const int fd = fds[i].get();
        std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
      }
    }
    const ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
      if (errno == EINTR) continue;
      return SystemError("sendmsg");
    }
    queued_fds_ -= pieces_.front().fds.size();
    pieces_.front().fds.clear();
    std::size_t left = static_cast<std::size_t>(sent);
    queued_bytes_ -= left;
    while (left > 0) {
      Piece& piece = pieces_.front();
      const std::size_t step = std::min(left, piece.bytes.size() - piece.sent);
      piece.sent += step;
      left -= step;
      if (piece.sent == piece.bytes.size()) pieces_.pop_front();
    }
  }
  return true;
}

}  // namespace kvm
