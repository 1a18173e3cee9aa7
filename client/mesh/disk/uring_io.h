// UringIo: a BlockIo by io_uring, with up to kDepth requests under way.
#pragma once

#include <liburing.h>

#include <vector>

#include "client/mesh/disk/block_io.h"

namespace kvm::mesh {

class UringIo final : public BlockIo {
 public:
  // kUnsupported: the kernel has no io_uring, or does not let this process use it.
  [[nodiscard]] static Result<std::unique_ptr<BlockIo>> Make();
  ~UringIo() override;
  UringIo(const UringIo&) = delete;
  UringIo& operator=(const UringIo&) = delete;

  std::string_view name() const noexcept override { return IoKindName(IoKind::kUring); }
  void Run(std::span<IoRequest> requests, const std::function<void(std::size_t)>& done) override;

 private:
  UringIo() = default;
  // Puts a request into the submission queue, which has room for it.
  void Prepare(IoRequest& request, std::size_t index) noexcept;
  // Hands what is queued to the kernel and waits for one end. 0, or errno: no request can be handed
  // over any more.
  int SubmitAndWait() noexcept;

  io_uring ring_{};
  unsigned queued_ = 0;  // prepared, and not taken by the kernel yet
  // errno of the kernel's refusal to take any more; the ring is not used again, since what is still
  // queued in it names memory that its caller has freed
  int broken_ = 0;
};

}  // namespace kvm::mesh
