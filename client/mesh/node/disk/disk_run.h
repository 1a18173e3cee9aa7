// DiskRun: consecutive blocks of a prefix, read from the disk cache for a peer.
//
// They are read into memory of their own, so that no slot of the staging pool waits for a disk, and
// on the disk's thread: blocks of memory go to other peers meanwhile. Each one is compared with its
// key, shape, length and checksum before it counts. A read that the disk does not finish in time
// goes on by itself, and the memory lives until it has ended. Of the io_context's thread.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "client/mesh/disk/aligned_buffer.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

class DiskRun : public std::enable_shared_from_this<DiskRun> {
 public:
  // Null: too much is being read for peers now. `node` has a disk.
  static std::shared_ptr<DiskRun> Make(NodeState& node, const BlockShape& shape, std::span<const BlockKey> keys);
  ~DiskRun();
  DiskRun(const DiskRun&) = delete;
  DiskRun& operator=(const DiskRun&) = delete;

  // Once. Ends when the read has ended, or at `deadline`; false then.
  Awaitable<bool> Read(Time deadline);
  // Leading blocks that are good.
  std::size_t good() const noexcept { return good_; }
  std::span<const std::byte> bytes(std::size_t i) const noexcept { return {reads_[i].into, shape_.block_bytes}; }
  std::uint64_t checksum(std::size_t i) const noexcept { return reads_[i].checksum; }

 private:
  DiskRun(NodeState& node, const BlockShape& shape, std::span<const BlockKey> keys);
  void ReadOnThread();
  void End(const std::exception_ptr& failed);

  NodeState& node_;
  const BlockShape shape_;
  AlignedBuffer memory_;
  std::vector<DiskRead> reads_;
  boost::asio::steady_timer ended_;
  Time deadline_{};
  std::uint64_t room_ = 0;  // that has been taken
  std::size_t good_ = 0;
  bool done_ = false, late_ = false;
};

}  // namespace kvm::mesh
