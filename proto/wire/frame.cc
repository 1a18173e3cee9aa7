#include "proto/wire/frame.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <memory>
#include <utility>

#include "proto/wire/protocol_limits.h"

namespace kvm {
namespace {

constexpr std::size_t kMaxReadBytes = 256 * 1024;
constexpr std::size_t kIdleBytes = 64 * 1024;
constexpr std::size_t kCoalesceBytes = 64 * 1024;
constexpr std::size_t kMaxPiecesPerSend = 16;

struct FrameHeader {
  std::uint32_t payload_bytes;
  std::uint16_t fd_count;
  std::uint16_t mark;
};
static_assert(sizeof(FrameHeader) == kFrameHeaderBytes);

// As many descriptors as the kernel passes at once (SCM_MAX_FD). A truncated message then always
// means that this process lacked descriptors, never that the peer sent too many.
constexpr std::size_t kKernelMaxFds = 253;
using ControlBuffer = std::array<char, CMSG_SPACE(sizeof(int) * kKernelMaxFds)>;

// Finds out why the kernel could not give this process the descriptors of a message: it makes one
// more descriptor, while those that did arrive are still open, and returns that call's error.
Error WhyLost(int socket) {
  const UniqueFd probe(::fcntl(socket, F_DUPFD_CLOEXEC, 0));
  if (!probe && (errno == EMFILE || errno == ENFILE)) return OutOfDescriptors(errno);
  // The call succeeded: another thread has closed descriptors meanwhile, or a security module
  // refused those of the message.
  Error error = OutOfDescriptors(EMFILE);
  error.message += ", or not allowed to have one that came";
  return error;
}

}  // namespace

Error OutOfDescriptors(int sys_errno) {
  rlimit limit{};
  std::string text = "out of descriptors on the whole machine (fs.file-max)";
  if (sys_errno != ENFILE && ::getrlimit(RLIMIT_NOFILE, &limit) == 0)
    text = "out of descriptors (limit " + std::to_string(limit.rlim_cur) + ")";
  return Error{Errc::kResourceExhausted, std::move(text), sys_errno};
}

bool IsOutOfDescriptors(const Error& error) noexcept { return error.sys_errno == EMFILE || error.sys_errno == ENFILE; }

// For read_bytes_ behind what is held.
void FrameReader::MakeRoom() {
  if (begin_ == end_) begin_ = end_ = 0;
  if (capacity_ - end_ >= read_bytes_) return;
  const std::size_t held = end_ - begin_;
  if (capacity_ - held >= read_bytes_) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, held);
  } else {
    // Half as much again, so that a large frame is moved a few times only.
    const std::size_t size = held + std::max(read_bytes_, held / 2);
    auto larger = std::make_unique_for_overwrite<char[]>(size);
    if (held > 0) std::memcpy(larger.get(), buffer_.get() + begin_, held);
    buffer_ = std::move(larger);
    capacity_ = size;
  }
  begin_ = 0;
  end_ = held;
}

Result<ReadOutcome> FrameReader::Fill(int socket) {
  MakeRoom();
  iovec vector{buffer_.get() + end_, capacity_ - end_};
  alignas(cmsghdr) ControlBuffer control;
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) {
      // An idle connection keeps no memory of a busy one.
      if (!InsideFrame() && capacity_ > kIdleBytes) {
        buffer_.reset();
        capacity_ = begin_ = end_ = 0;
      }
      return ReadOutcome::kWouldBlock;
    }
    return SystemError("recvmsg");
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      fds_.emplace_back(UniqueFd(fd), closer_, uid_);
    }
  }
  if (message.msg_flags & MSG_CTRUNC) {
    lost_ = WhyLost(socket);
    fds_.emplace_back();
  }
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
  std::memcpy(&header, buffer_.get() + begin_, sizeof(header));
  if (header.mark != kFrameMark) return MakeError(Errc::kProtocol, "not a kvmd frame");
  if (header.payload_bytes > kMaxFrameBytes) {
    return MakeError(Errc::kProtocol,
                     "frame of " + std::to_string(header.payload_bytes) + " bytes, the limit is " + std::to_string(kMaxFrameBytes));
  }
  if (header.fd_count > kMaxFrameFds)
    return MakeError(Errc::kProtocol, "frame announces " + std::to_string(header.fd_count) + " descriptors");
  if (end_ - begin_ < kFrameHeaderBytes + header.payload_bytes) return std::optional<Frame>();
  // The kernel delivers descriptors with the frame's first byte, so by now all of them have arrived
  // or are lost.
  Frame frame;
  while (frame.fds.size() < header.fd_count && !fds_.empty() && !frame.lost_fds) {
    if (fds_.front()) {
      frame.fds.push_back(std::move(fds_.front()));
    } else {
      frame.lost_fds = lost_;
    }
    fds_.pop_front();
  }
  if (frame.lost_fds) {
    frame.fds.clear();
  } else if (frame.fds.size() < header.fd_count) {
    return MakeError(Errc::kProtocol,
                     "frame announces " + std::to_string(header.fd_count) + " descriptors, " + std::to_string(frame.fds.size()) + " came");
  }
  frame.payload.assign(buffer_.get() + begin_ + kFrameHeaderBytes, header.payload_bytes);
  begin_ += kFrameHeaderBytes + header.payload_bytes;
  if (begin_ == end_ && !fds_.empty()) return MakeError(Errc::kProtocol, "descriptors that no frame announced");
  return std::optional<Frame>(std::move(frame));
}

Status FrameWriter::Check(std::string_view payload, const std::vector<int>& fds) const {
  if (payload.size() > kMaxFrameBytes) {
    return MakeError(Errc::kInvalidArgument,
                     "message of " + std::to_string(payload.size()) + " bytes, the limit is " + std::to_string(kMaxFrameBytes));
  }
  if (fds.size() > kMaxFrameFds) {
    return MakeError(Errc::kInvalidArgument,
                     std::to_string(fds.size()) + " descriptors in one message, the limit is " + std::to_string(kMaxFrameFds));
  }
  return {};
}

void FrameWriter::Push(std::string_view payload, std::size_t fd_count, Piece piece) {
  const FrameHeader header{static_cast<std::uint32_t>(payload.size()), static_cast<std::uint16_t>(fd_count), kFrameMark};
  // Small frames without descriptors are sent together.
  const bool coalesce = fd_count == 0 && !pieces_.empty() && pieces_.back().bytes.size() + payload.size() < kCoalesceBytes;
  // All that takes memory comes first, so that a lack of it leaves no part of a frame behind.
  std::string& first = coalesce ? pieces_.back().bytes : piece.bytes;
  first.reserve(first.size() + sizeof(header) + payload.size());
  if (!coalesce) pieces_.push_back(std::move(piece));
  std::string& bytes = pieces_.back().bytes;
  bytes.append(reinterpret_cast<const char*>(&header), sizeof(header));
  bytes.append(payload);
  queued_bytes_ += sizeof(header) + payload.size();
  queued_fds_ += fd_count;
}

Status FrameWriter::Duplicate(const std::vector<int>& fds, std::vector<PeerFd>& out) const {
  for (const int fd : fds) {
    out.emplace_back(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)), closer_, uid_);
    if (out.back()) continue;
    if (errno == EMFILE || errno == ENFILE) return OutOfDescriptors(errno);
    return SystemError("duplicate a descriptor");
  }
  return {};
}

Status FrameWriter::Append(std::string_view payload, const std::vector<int>& fds) {
  if (Status fits = Check(payload, fds); !fits) return fits;
  Piece piece;
  if (Status duplicated = Duplicate(fds, piece.fds); !duplicated) return duplicated;
  Push(payload, fds.size(), std::move(piece));
  return {};
}

void FrameWriter::Append(FrameWriter others) {
  std::move(others.pieces_.begin(), others.pieces_.end(), std::back_inserter(pieces_));
  queued_bytes_ += others.queued_bytes_;
  queued_fds_ += others.queued_fds_;
}

Result<bool> FrameWriter::Send(int socket, std::string_view payload, const std::vector<int>& fds) {
  if (Status fits = Check(payload, fds); !fits) return fits.error();
  Piece borrowing;
  borrowing.borrowed = fds;
  Push(payload, fds.size(), std::move(borrowing));
  Result<bool> drained = Drain(socket);
  if (pieces_.empty() || pieces_.back().borrowed.empty()) return drained;
  // The frame has to wait, and no part of it has been sent. It is not in the queue while it can
  // fail.
  Piece waiting = std::move(pieces_.back());
  pieces_.pop_back();
  queued_bytes_ -= waiting.bytes.size();
  queued_fds_ -= fds.size();
  waiting.borrowed.clear();
  if (Status duplicated = Duplicate(fds, waiting.fds); !duplicated) return duplicated.error();
  const std::size_t bytes = waiting.bytes.size();
  pieces_.push_back(std::move(waiting));
  queued_bytes_ += bytes;
  queued_fds_ += fds.size();
  return drained;
}

// Descriptors that were sent are in flight until the peer has read them. This side only sees when
// the peer has read everything.
bool FrameWriter::MayFly(int socket, std::size_t fds) {
  if (fds == 0 || fds_in_flight_ == 0 || fds_in_flight_ + fds <= max_fds_in_flight_) return true;
  int unread = 0;
  if (::ioctl(socket, SIOCOUTQ, &unread) == 0 && unread > 0) return false;
  fds_in_flight_ = 0;
  return true;
}

Result<bool> FrameWriter::Drain(int socket) {
  held_back_ = HeldBack::kNo;
  while (!pieces_.empty()) {
    const std::size_t fd_count = pieces_.front().fd_count();
    if (!MayFly(socket, fd_count)) {
      held_back_ = HeldBack::kReader;
      return false;
    }
    // A piece with descriptors starts a sendmsg of its own, so that its descriptors travel with its
    // first byte.
    iovec vectors[kMaxPiecesPerSend];
    std::size_t used = 0;
    for (Piece& piece : pieces_) {
      if (used == kMaxPiecesPerSend || (used > 0 && piece.fd_count() > 0)) break;
      vectors[used++] = {piece.bytes.data() + piece.sent, piece.bytes.size() - piece.sent};
    }
    msghdr message{};
    message.msg_iov = vectors;
    message.msg_iovlen = used;
    alignas(cmsghdr) ControlBuffer control;
    if (fd_count > 0) {
      message.msg_control = control.data();
      message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
      std::memset(control.data(), 0, message.msg_controllen);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
      const Piece& first = pieces_.front();
      for (std::size_t i = 0; i < fd_count; ++i) {
        const int fd = first.borrowed.empty() ? first.fds[i].get() : first.borrowed[i];
        std::memcpy(CMSG_DATA(header) + i * sizeof(int), &fd, sizeof(int));
      }
    }
    const ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
      if (errno == EINTR) continue;
      // This need not be the peer's fault: other receivers may not have read what this user has
      // sent them.
      if (errno == ETOOMANYREFS) {
        held_back_ = HeldBack::kKernel;
        return false;
      }
      return SystemError("sendmsg");
    }
    queued_fds_ -= fd_count;
    fds_in_flight_ += fd_count;
    pieces_.front().fds.clear();
    pieces_.front().borrowed.clear();
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
