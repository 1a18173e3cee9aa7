// Channel: messages between kvctl and the processes that it started, over a SOCK_SEQPACKET pair;
// each packet is one message.
//
// When either process ends, its side is closed, and the other process gets an error instead of
// waiting for ever. Both processes run the same binary, so messages are plain structs.
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

  // The limit of a message, so that the default socket buffer has room for it.
  static constexpr std::size_t kMaxMessageBytes = 160 * 1024;

  Channel() = default;
  explicit Channel(UniqueFd socket) : socket_(std::move(socket)) {}

  // Makes both ends, close-on-exec.
  [[nodiscard]] static Result<std::pair<Channel, Channel>> Pair();

  int fd() const noexcept { return socket_.get(); }
  void Close() noexcept { socket_.Reset(); }

  // kUnavailable: the other process has ended. kInvalidArgument: too large.
  [[nodiscard]] Status Send(std::span<const std::byte> message);
  // kUnavailable: the other process has ended. kDeadlineExceeded. kCancelled: this one was
  // interrupted.
  [[nodiscard]] Result<std::vector<std::byte>> Receive(Deadline deadline = Deadline::max());

  // Whether Receive would return at once: a message is there, or the other process has ended.
  bool Readable() const noexcept;

  template <class T>
  [[nodiscard]] Status SendStruct(const T& message) {
    static_assert(std::is_trivially_copyable_v<T>);
    return Send(std::as_bytes(std::span(&message, 1)));
  }
  // The errors of Receive, and kProtocol: the message has another size.
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
