#include "client/mesh/disk/uring_io.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

namespace kvm::mesh {

Result<std::unique_ptr<BlockIo>> UringIo::Make() {
  std::unique_ptr<UringIo> out(new UringIo());
  const int failed = ::io_uring_queue_init(kDepth, &out->ring_, 0);
  if (failed < 0) {
    // The destructor must not end a ring that was never made.
    out->ring_.ring_fd = -1;
    return Error{Errc::kUnsupported, "io_uring is not available", -failed};
  }
  return std::unique_ptr<BlockIo>(std::move(out));
}

UringIo::~UringIo() {
  if (ring_.ring_fd >= 0) ::io_uring_queue_exit(&ring_);
}

void UringIo::Prepare(IoRequest& request, std::size_t index) noexcept {
  io_uring_sqe* entry = ::io_uring_get_sqe(&ring_);
  iovec* parts = request.parts.data();
  auto count = static_cast<unsigned>(request.parts.size());
  while (count > 1 && parts->iov_len == 0) {
    ++parts;
    --count;
  }
  if (request.write)
    ::io_uring_prep_writev(entry, request.fd, parts, count, request.offset);
  else
    ::io_uring_prep_readv(entry, request.fd, parts, count, request.offset);
  ::io_uring_sqe_set_data64(entry, index);
  ++queued_;
}

int UringIo::SubmitAndWait() noexcept {
  for (;;) {
    const int submitted = ::io_uring_submit_and_wait(&ring_, 1);
    if (submitted >= 0) {
      queued_ -= std::min(queued_, static_cast<unsigned>(submitted));
      return 0;
    }
    if (submitted != -EINTR && submitted != -EAGAIN && submitted != -EBUSY) return -submitted;
    // Too much is under way for the kernel: what has ended makes room.
    if (submitted != -EINTR && ::io_uring_cq_ready(&ring_) > 0) return 0;
    if (submitted != -EINTR) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void UringIo::Run(std::span<IoRequest> requests, const std::function<void(std::size_t)>& done) {
  // The caller's requests keep their memory; these lose what has been moved.
  std::vector<IoRequest> left(requests.begin(), requests.end());
  std::vector<bool> has_ended(requests.size(), false);
  std::size_t next = 0, ended = 0;
  unsigned under_way = 0;
  const auto end = [&](std::size_t index, int error) {
    requests[index].error = error;
    has_ended[index] = true;
    ++ended;
    done(index);
  };
  while (ended < requests.size()) {
    for (; broken_ == 0 && next < requests.size() && under_way < kDepth; ++under_way) Prepare(left[next], next), ++next;
    if (broken_ == 0) broken_ = SubmitAndWait();
    if (broken_ != 0) {
      // What the kernel has not taken never will be, and what it has must end first.
      if (under_way == queued_) break;
      io_uring_cqe* waiting = nullptr;
      static_cast<void>(::io_uring_wait_cqe(&ring_, &waiting));
    }
    io_uring_cqe* entry = nullptr;
    while (::io_uring_peek_cqe(&ring_, &entry) == 0) {
      const auto index = static_cast<std::size_t>(::io_uring_cqe_get_data64(entry));
      const int moved = entry->res;
      ::io_uring_cqe_seen(&ring_, entry);
      --under_way;
      const bool again = moved == -EINTR || moved == -EAGAIN || (moved > 0 && Advance(left[index], static_cast<std::uint64_t>(moved)));
      if (again && broken_ == 0) {
        Prepare(left[index], index);
        ++under_way;
      } else if (again) {
        end(index, broken_);
      } else {
        end(index, moved < 0 ? -moved : moved == 0 ? ENODATA : 0);
      }
    }
  }
  for (std::size_t index = 0; index < requests.size(); ++index)
    if (!has_ended[index]) end(index, broken_);
}

}  // namespace kvm::mesh
