// Framing of messages and descriptors over a Unix stream socket.
//
//   frame = u32 payload_bytes (LE) | u16 fd_count (LE) | u16 0x4B56 | payload
//
// The descriptors of a frame are attached (SCM_RIGHTS) to the sendmsg that carries its first byte.
// Reader and writer are for non-blocking sockets and do no waiting; one thread at a time each.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/error.h"
#include "proto/unique_fd.h"

namespace kvm {

inline constexpr std::size_t kFrameHeaderBytes = 8;
inline constexpr std::uint16_t kFrameMark = 0x4B56;

struct Frame {
  std::string payload;
  std::vector<UniqueFd> fds;
};

enum class ReadOutcome {
  kProgress,    // bytes arrived; call Next until it is empty
  kWouldBlock,  // nothing there
  kEnd,         // the peer closed, between two frames
};

class FrameReader {
 public:
  // One recvmsg. kProtocol: the peer closed inside a frame, or sent more descriptors than any frame
  // may carry. kSystem: recvmsg failed.
  [[nodiscard]] Result<ReadOutcome> Fill(int socket);

  // The next complete frame, if there is one. kProtocol: wrong mark, oversized payload, or fewer
  // descriptors than the header says; the connection is then beyond repair.
  [[nodiscard]] Result<std::optional<Frame>> Next();

  // True while part of a frame has arrived and its rest has not.
  bool InsideFrame() const noexcept { return end_ != begin_; }

 private:
  std::string buffer_;
  std::size_t begin_ = 0, end_ = 0;
  // The buffer starts small (a node may have a thousand connections) and grows while reads fill it.
  std::size_t read_bytes_ = std::size_t{16} << 10;
  std::deque<UniqueFd> fds_;
};

class FrameWriter {
 public:
  // Appends a frame. Descriptors are duplicated (the caller keeps its own).
  // kInvalidArgument: payload or descriptors over the limit. kSystem: dup failed.
  [[nodiscard]] Status Append(std::string_view payload, const std::vector<int>& fds = {});

  // Sends until done (true) or the socket is full (false). kSystem: sendmsg failed (EPIPE, …).
  [[nodiscard]] Result<bool> Drain(int socket);

  std::size_t queued_bytes() const noexcept { return queued_bytes_; }
  std::size_t queued_fds() const noexcept { return queued_fds_; }

 private:
  struct Piece {
    std::string bytes;
    std::size_t sent = 0;
    std::vector<UniqueFd> fds;  // go with the first byte
  };
  std::deque<Piece> pieces_;
  std::size_t queued_bytes_ = 0;
  std::size_t queued_fds_ = 0;
};

}  // namespace kvm
