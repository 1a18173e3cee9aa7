// Framing of messages and descriptors over a Unix stream socket.
//
//   frame = u32 payload_bytes (LE) | u16 fd_count (LE) | u16 0x4B56 | payload
//
// The descriptors of a frame are attached (SCM_RIGHTS) to the sendmsg that carries its first byte.
// Reader and writer are for non-blocking sockets and never wait. Each may be used by one thread at
// a time.
//
// A process that is out of descriptors loses the descriptors of a frame that arrives, and nothing
// else: the kernel drops descriptors that do not fit into the process's table and delivers the
// bytes. The reader then returns the frame without descriptors and with the reason, and the stream
// stays intact. A frame that the writer can't send, because this process has no descriptors left or
// the kernel refuses more in flight, stays queued.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/error.h"
#include "proto/base/peer_fd.h"
#include "proto/base/unique_fd.h"

namespace kvm {

inline constexpr std::size_t kFrameHeaderBytes = 8;
inline constexpr std::uint16_t kFrameMark = 0x4B56;

// The error of a call that failed with EMFILE or ENFILE: kResourceExhausted; the message names the
// limit, and the errno is kept.
Error OutOfDescriptors(int sys_errno);
// Whether the error means that this process or machine was out of descriptors, rather than that a
// peer did something wrong.
bool IsOutOfDescriptors(const Error& error) noexcept;

struct Frame {
  std::string payload;
  std::vector<PeerFd> fds;
  // Set if this process could not take the frame's descriptors: the reason. `fds` is empty then.
  std::optional<Error> lost_fds;
};

enum class ReadOutcome {
  kProgress,    // bytes arrived; call Next until it is empty
  kWouldBlock,  // no bytes are there
  kEnd,         // the peer closed, between two frames
};

class FrameReader {
 public:
  FrameReader() = default;
  // `closer`, which outlives the reader and its frames, closes the descriptors that came and are
  // not taken, for user `uid`.
  FrameReader(DescriptorCloser& closer, std::uint32_t uid) : closer_(&closer), uid_(uid) {}

  // One recvmsg. kProtocol: the peer closed inside a frame, or sent more descriptors than its
  // frames announce. kSystem: recvmsg failed.
  [[nodiscard]] Result<ReadOutcome> Fill(int socket);

  // The next complete frame, if there is one. kProtocol: wrong mark, oversized payload, or fewer
  // descriptors than the header says although this process lost none. The connection is unusable
  // then.
  [[nodiscard]] Result<std::optional<Frame>> Next();

  // What it has in memory, and descriptors that came with what is not complete yet.
  std::size_t held_bytes() const noexcept { return capacity_; }
  std::size_t held_fds() const noexcept { return fds_.size(); }
  // Those descriptors; not open: lost.
  const std::deque<PeerFd>& fds() const noexcept { return fds_; }
  // True while part of a frame has arrived and its rest has not.
  bool InsideFrame() const noexcept { return end_ != begin_; }

 private:
  void MakeRoom();

  DescriptorCloser* closer_ = nullptr;
  std::uint32_t uid_ = 0;
  std::unique_ptr<char[]> buffer_;  // never filled with zeros: a read needs none
  std::size_t capacity_ = 0;
  std::size_t begin_ = 0, end_ = 0;
  // The buffer starts small (a node may have a thousand connections) and grows while reads fill it.
  std::size_t read_bytes_ = std::size_t{16} << 10;
  // An element that is not open marks where the descriptors of one sendmsg were lost
  std::deque<PeerFd> fds_;
  std::optional<Error> lost_;  // why the last ones were lost
};

class FrameWriter {
 public:
  // Why Drain has stopped although the socket is writable. Waiting for a writable socket does not
  // help then; the caller tries again after a while.
  enum class HeldBack {
    kNo,
    // The peer has not read what was sent, and the limit of descriptors in flight to it is reached
    kReader,
    // This user has more descriptors in flight, over all sockets, than the kernel allows
    // (ETOOMANYREFS)
    kKernel,
  };

  FrameWriter() = default;
  // `max_fds_in_flight`: how many descriptors may be sent and not read by the peer yet. The
  // descriptors of one frame are always allowed. `closer`: as in FrameReader.
  explicit FrameWriter(std::size_t max_fds_in_flight, DescriptorCloser* closer = nullptr, std::uint32_t uid = 0)
      : max_fds_in_flight_(max_fds_in_flight), closer_(closer), uid_(uid) {}

  // Appends a frame. Descriptors are duplicated (the caller keeps its own).
  // kInvalidArgument: payload or descriptors over the limit. kResourceExhausted: no descriptor is
  // left to duplicate them; kSystem: dup failed for another reason. Nothing is appended then.
  [[nodiscard]] Status Append(std::string_view payload, const std::vector<int>& fds = {});

  // Appends the frames of another writer, none of which has been sent in part.
  void Append(FrameWriter others);

  // Append and Drain in one. Descriptors are duplicated only if the frame has to wait, so a process
  // that has no descriptor left can still send. Errors: those of both.
  [[nodiscard]] Result<bool> Send(int socket, std::string_view payload, const std::vector<int>& fds);

  // Sends until all is sent (true), or until the socket is full or sending is held back (false).
  // kSystem: sendmsg failed (EPIPE, …).
  [[nodiscard]] Result<bool> Drain(int socket);

  std::size_t queued_bytes() const noexcept { return queued_bytes_; }
  std::size_t queued_fds() const noexcept { return queued_fds_; }
  HeldBack held_back() const noexcept { return held_back_; }

 private:
  struct Piece {
    std::string bytes;
    std::size_t sent = 0;
    std::vector<PeerFd> fds;    // travel with the first byte
    std::vector<int> borrowed;  // instead of `fds`, while Send runs
    std::size_t fd_count() const noexcept { return fds.size() + borrowed.size(); }
  };
  Status Check(std::string_view payload, const std::vector<int>& fds) const;
  Status Duplicate(const std::vector<int>& fds, std::vector<PeerFd>& out) const;
  void Push(std::string_view payload, std::size_t fd_count, Piece piece);
  bool MayFly(int socket, std::size_t fds);

  std::size_t max_fds_in_flight_ = static_cast<std::size_t>(-1);
  DescriptorCloser* closer_ = nullptr;
  std::uint32_t uid_ = 0;
  std::size_t fds_in_flight_ = 0;  // an upper bound
  HeldBack held_back_ = HeldBack::kNo;
  std::deque<Piece> pieces_;
  std::size_t queued_bytes_ = 0;
  std::size_t queued_fds_ = 0;
};

}  // namespace kvm
