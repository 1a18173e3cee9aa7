// Messages between kvctl and the processes that it started: a SOCK_SEQPACKET pair, one message a packet.
//
// The end of either process closes its side, and the other sees that instead of waiting for ever.
// Both ends run the same binary, so messages are plain structs.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvm/error.h"
#include "proto/base/unique_fd.h"

namespace kvm::ctl {

class Channel {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  // Messages are smaller than this, so that the default socket buffer takes them.
  static constexpr std::size_t kMaxMessageBytes = 160 * 1024;

  Channel() = default;
  explicit Channel(UniqueFd socket) : socket_(std::move(socket)) {}

  // Both ends; close-on-exec.
  [[nodiscard]] static Result<std::pair<Channel, Channel>> Pair();

  int fd() const noexcept { return socket_.get(); }
  void Close() noexcept { socket_.Reset(); }

  // kUnavailable: the other process has ended. kInvalidArgument: too large.
  [[nodiscard]] Status Send(std::span<const std::byte> message);
  // kUnavailable: the other process has ended. kDeadlineExceeded. kCancelled: this one was interrupted.
  [[nodiscard]] Result<std::vector<std::byte>> Receive(Deadline deadline = Deadline::max());

  // Whether Receive would return at once: a message, or the other process's end.
  bool Readable() const noexcept;

  template <class T>
  [[nodiscard]] Status SendStruct(const T& message) {
    static_assert(std::is_trivially_copyable_v<T>);
    return Send(std::as_bytes(std::span(&message, 1)));
  }
  // kProtocol as well: a message of another size.
  template <class T>
  [[nodiscard]] Result<T> ReceiveStruct(Deadline deadline = Deadline::max()) {
    static_assert(std::is_trivially_copyable_v<T>);
    Result<std::vector<std::byte>> message = Receive(deadline);
    if (!message) return message.error();
    return As<T>(*message);
  }
  template <class T>
  [[nodiscard]] static Result<T> As(std::span<const std::byte> message) {
    if (message.size() != sizeof(T))
      return MakeError(Errc::kProtocol, "unexpected message of " + std::to_string(message.size()) + " bytes");
    T value;
    std::copy(message.begin(), message.end(), reinterpret_cast<std::byte*>(&value));
    return value;
  }

 private:
  UniqueFd socket_;
};

}  // namespace kvm::ctl
