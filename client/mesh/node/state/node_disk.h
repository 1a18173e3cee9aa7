// NodeDisk: the disk cache of a mesh process, with its threads, and the blocks that wait to be
// written. Of the io_context's thread, except where DiskCache says otherwise.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "client/mesh/disk/disk_cache.h"
#include "client/mesh/scan/scan_result.h"
#include "client/mesh/sources/peer_rate.h"
#include "client/mesh/threads/work_threads.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

class NodeDisk {
 public:
  // `io` and `failures` outlive it.
  NodeDisk(std::unique_ptr<DiskCache> cache, boost::asio::io_context& io, WorkFailures& failures)
      : cache_(std::move(cache)), read_thread_(io, failures, 1), write_thread_(io, failures, 1) {}
  ~NodeDisk();
  NodeDisk(const NodeDisk&) = delete;
  NodeDisk& operator=(const NodeDisk&) = delete;

  DiskCache& cache() noexcept { return *cache_; }
  const DiskCache& cache() const noexcept { return *cache_; }
  WorkThreads& read_thread() noexcept { return read_thread_; }
  WorkThreads& write_thread() noexcept { return write_thread_; }
  // Ends the threads' work; nothing is read or written afterwards.
  void Stop();

  // Whether blocks of `domain` can be read now.
  bool readable(const std::string& domain) const;
  // Why not, for people; empty: they can.
  std::string Refusal(const std::string& domain) const;
  // A worker has asked for this prefix.
  void Use(std::span<const BlockKey> keys);
  // Leading blocks that it has.
  std::size_t LeadingBlocks(std::span<const BlockKey> keys) const;

  // How many more blocks may wait to be written.
  std::size_t room() const noexcept { return kMaxWaiting - std::min(kMaxWaiting, waiting_.size()); }
  // `more`: there are others. `all`: of the whole host cache, not just of what is new in it.
  void Offer(std::vector<CachedBlock> blocks, bool more, bool all);
  // Others were left out for lack of room, and there is room again.
  bool wants_more() const noexcept { return more_ && waiting_.size() < kMaxWaiting / 2; }
  std::deque<CachedBlock>& waiting() noexcept { return waiting_; }

  // Room for blocks that are read for peers, which have memory of their own. False: there is none.
  bool TakeServingRoom(std::uint64_t bytes) noexcept;
  void ReturnServingRoom(std::uint64_t bytes) noexcept { serving_bytes_ -= bytes; }
  // Whether peers are served from it now.
  bool serves(const std::string& domain) const { return readable(domain) && overdue_ == 0 && overdue_for_peers_ == 0; }
  // Reads that have not ended by their deadline. While there is one of a join, no other is begun;
  // while there is one for a peer, no other one for peers.
  std::size_t& overdue() noexcept { return overdue_; }
  std::size_t& overdue_for_peers() noexcept { return overdue_for_peers_; }

  PeerRate& rate() noexcept { return rate_; }  // at which joins have read
  const PeerRate& rate() const noexcept { return rate_; }
  void Describe(const std::string& domain, kvmmesh::DiskStatus& out) const;

 private:
  static constexpr std::size_t kMaxWaiting = 8192;
  static constexpr std::uint64_t kServingBytes = std::uint64_t{32} << 20;

  std::unique_ptr<DiskCache> cache_;
  WorkThreads read_thread_, write_thread_;
  std::deque<CachedBlock> waiting_;  // the next one to be written first
  bool more_ = false;
  std::uint64_t serving_bytes_ = 0;
  std::size_t overdue_ = 0, overdue_for_peers_ = 0;
  PeerRate rate_;
};

}  // namespace kvm::mesh
