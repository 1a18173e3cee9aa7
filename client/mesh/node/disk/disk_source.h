// DiskSource: the node's disk cache as a source of a join.
//
// Blocks are read into slots of the landing pool, whose generations are odd until all bytes have
// been read and compared, and published then. A read that the disk does not finish in time goes on
// by itself: its slots are no other block's until it has ended, and what it brings is published
// late. Of the io_context's thread.
#pragma once

#include <memory>
#include <string>

#include "client/mesh/membership/member.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/sources/source.h"

namespace kvm::mesh {

class DiskSource final : public Source {
 public:
  // `node` has a disk.
  explicit DiskSource(NodeState& node) : node_(node) {}

  const std::string& name() const noexcept override { return name_; }
  bool IsNamed(const std::string&) const override { return false; }
  Candidate Consider(std::span<const BlockKey> keys, std::size_t local) const override;
  Awaitable<FetchOutcome> Fetch(FetchJob job) override;

 private:
  class Batch;
  Awaitable<void> FetchBatches(const FetchJob& job, FetchOutcome& out);

  NodeState& node_;
  const std::string name_{kDiskName};
  std::size_t in_flight_ = 0;
};

}  // namespace kvm::mesh
