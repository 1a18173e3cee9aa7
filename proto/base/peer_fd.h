// PeerFd: one descriptor of a file that another process sent, or is to get.
//
// Once the others have closed theirs, this close is the last one: it frees the file's memory, which
// takes 50 ms a GiB, or waits for a socket. A server's thread must not wait for that, so the
// descriptor is handed to a DescriptorCloser, wherever it is dropped. Without one it is closed at
// once. Movable.
#pragma once

#include <cstdint>
#include <utility>

#include "proto/base/descriptor_closer.h"
#include "proto/base/unique_fd.h"

namespace kvm {

class PeerFd {
 public:
  PeerFd() = default;
  // `closer`, if any, outlives it. `uid`: the user who waits for the close.
  PeerFd(UniqueFd fd, DescriptorCloser* closer = nullptr, std::uint32_t uid = 0) noexcept
      : fd_(std::move(fd)), closer_(closer), uid_(uid) {}
  PeerFd(PeerFd&&) noexcept = default;
  PeerFd& operator=(PeerFd&& other) noexcept {
    if (this == &other) return *this;
    Reset();
    fd_ = std::move(other.fd_);
    closer_ = other.closer_;
    uid_ = other.uid_;
    return *this;
  }
  ~PeerFd() { Reset(); }

  int get() const noexcept { return fd_.get(); }
  explicit operator bool() const noexcept { return bool{fd_}; }
  // Takes the descriptor, which its new owner closes.
  operator UniqueFd() && noexcept { return std::move(fd_); }
  // Another descriptor, to be closed as this one is.
  PeerFd Like(UniqueFd other) const noexcept { return {std::move(other), closer_, uid_}; }
  void Reset() noexcept {
    if (fd_ && closer_ != nullptr) closer_->Close(uid_, std::move(fd_));
    fd_.Reset();
  }

 private:
  UniqueFd fd_;
  DescriptorCloser* closer_ = nullptr;
  std::uint32_t uid_ = 0;
};

}  // namespace kvm
