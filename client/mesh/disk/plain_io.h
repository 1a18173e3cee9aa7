// PlainIo: a BlockIo by preadv and pwritev, one request after another.
#pragma once

#include "client/mesh/disk/block_io.h"

namespace kvm::mesh {

class PlainIo final : public BlockIo {
 public:
  std::string_view name() const noexcept override { return IoKindName(IoKind::kPlain); }
  void Run(std::span<IoRequest> requests, const std::function<void(std::size_t)>& done) override;
};

}  // namespace kvm::mesh
