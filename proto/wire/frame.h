// Framing of messages and descriptors over a Unix stream socket.
//
//   frame = u32 payload_bytes (LE) | u16 fd_count (LE) | u16 0x4B56 | payload
//
// The descriptors of a frame are attached (SCM_RIGHTS) to the sendmsg that carries its first byte.
// Reader and writer are for non-blocking sockets and do no waiting; one thread at a time each.
//
// A process that is out of descriptors loses those of a frame that arrives, and nothing else: the kernel
// drops descriptors that have no place in the process's table and delivers the bytes. The reader then
// returns the frame without descriptors, with the reason, and the stream stays in step. A frame that a
// *writer* can't send, because descriptors are missing or the kernel refuses more in flight, waits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm {

inline constexpr std::size_t kFrameHeaderBytes = 8;
inline constexpr std::uint16_t kFrameMark = 0x4B56;

// Of a call that failed with EMFILE or ENFILE: kResourceExhausted, names the limit and keeps the errno.
Error OutOfDescriptors(int sys_errno);
// Whether this process (or machine) was out of descriptors: nothing that a peer did.
bool IsOutOfDescriptors(const Error& error) noexcept;

struct Frame {
  std::string payload;
  std::vector<UniqueFd> fds;
  // This process could not take the frame's descriptors, and why; `fds` is empty.
  std::optional<Error> lost_fds;
};

enum class ReadOutcome {
  kProgress,    // bytes arrived; call Next until it is empty
  kWouldBlock,  // nothing there
  kEnd,         // the peer closed, between two frames
};

class FrameReader {
 public:
  // One recvmsg. kProtocol: the peer closed inside a frame, or sent more descriptors than its frames
  // announce. kSystem: recvmsg failed.
  [[nodiscard]] Result<ReadOutcome> Fill(int socket);

  // The next complete frame, if there is one. kProtocol: wrong mark, oversized payload, or fewer
  // descriptors than the header says though none was lost here; the connection is then beyond repair.
  [[nodiscard]] Result<std::optional<Frame>> Next();

  // What it has in memory, and descriptors that came with what is not complete yet.
  std::size_t held_bytes() const noexcept { return buffer_.size(); }
  std::size_t held_fds() const noexcept { return fds_.size(); }
  // True while part of a frame has arrived and its rest has not.
  bool InsideFrame() const noexcept { return end_ != begin_; }

 private:
  std::string buffer_;
  std::size_t begin_ = 0, end_ = 0;
  // The buffer starts small (a node may have a thousand connections) and grows while reads fill it.
  std::size_t read_bytes_ = std::size_t{16} << 10;
  std::deque<UniqueFd> fds_;   // one that is not open: from here on those of one sendmsg were lost
  std::optional<Error> lost_;  // why the last of them were
};

class FrameWriter {
 public:
  // Why Drain has stopped though the socket takes bytes: writable says nothing then, so try again after a while.
  enum class HeldBack {
    kNo,
    kReader,  // the peer has not read what was sent, and as many descriptors as may be are in flight to it
    kKernel,  // this user has more descriptors in flight than the kernel allows (ETOOMANYREFS), to whomever
  };

  FrameWriter() = default;
  // At most so many descriptors are in flight, sent and not read by the peer; one frame always may be.
  explicit FrameWriter(std::size_t max_fds_in_flight) : max_fds_in_flight_(max_fds_in_flight) {}

  // Appends a frame. Descriptors are duplicated (the caller keeps its own).
  // kInvalidArgument: payload or descriptors over the limit. kResourceExhausted: no descriptor is left to duplicate them;
  // kSystem: dup failed for another reason. Nothing is appended then.
  [[nodiscard]] Status Append(std::string_view payload, const std::vector<int>& fds = {});

  // Append and Drain. Descriptors are duplicated only if the frame has to wait, so a process that has none left can
  // still send. Errors: those of both.
  [[nodiscard]] Result<bool> Send(int socket, std::string_view payload, const std::vector<int>& fds);

  // Sends until done (true), or the socket is full or sending is held back (false). kSystem: sendmsg failed (EPIPE, …).
  [[nodiscard]] Result<bool> Drain(int socket);

  std::size_t queued_bytes() const noexcept { return queued_bytes_; }
  std::size_t queued_fds() const noexcept { return queued_fds_; }
  HeldBack held_back() const noexcept { return held_back_; }

 private:
  struct Piece {
    std::string bytes;
    std::size_t sent = 0;
    std::vector<UniqueFd> fds;  // go with the first byte
    std::vector<int> borrowed;  // instead of `fds`, while Send runs
    std::size_t fd_count() const noexcept { return fds.size() + borrowed.size(); }
  };
  Status Check(std::string_view payload, const std::vector<int>& fds) const;
  void Push(std::string_view payload, std::size_t fd_count, Piece piece);
  bool MayFly(int socket, std::size_t fds);

  std::size_t max_fds_in_flight_ = static_cast<std::size_t>(-1);
  std::size_t fds_in_flight_ = 0;  // at most
  HeldBack held_back_ = HeldBack::kNo;
  std::deque<Piece> pieces_;
  std::size_t queued_bytes_ = 0;
  std::size_t queued_fds_ = 0;
};

}  // namespace kvm
