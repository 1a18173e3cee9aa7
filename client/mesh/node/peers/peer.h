// Peer: another node, as this one sees it: its summary, its connections, and what is known about
// its speed and its failures.
//
// Pull runs for as long as the process. Fetch is called by JoinService. A peer is another machine's
// process and may send anything: every length, key and number is compared with what was asked for,
// and after a lie the peer is not asked for a while. Of the io_context's thread.
#pragma once

#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "client/mesh/directory/peer_summary.h"
#include "client/mesh/node/peers/peer_channels.h"
#include "client/mesh/node/state/config.h"
#include "client/mesh/node/state/node_state.h"
#include "client/mesh/sources/peer_rate.h"
#include "client/mesh/sources/source.h"
#include "client/mesh/transfer/transfer.h"
#include "proto/mesh/mesh.pb.h"

namespace kvm::mesh {

class Peer final : public Source {
 public:
  Peer(NodeState& node, Transfer& transfer, PeerConfig config)
      : node_(node), config_(std::move(config)), channels_(node, transfer, config_), pause_(node.io) {}
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;

  const std::string& name() const noexcept override { return config_.node; }
  const std::string& address() const noexcept { return config_.address; }
  // By its name, or by its IP address: routers know nodes by that.
  bool IsNamed(const std::string& hint) const override;
  // The membership that names it, for people.
  void KnownFrom(std::string membership) { known_from_ = std::move(membership); }
  // Keeps the summary up to date, until Stop.
  Awaitable<void> Pull();
  // It is a peer no more. Requests for blocks that are under way go on to their end.
  void Stop();
  // Whether it answers, so that its summary counts.
  bool fresh() const noexcept;
  // It has lied, and is not asked for blocks for a while.
  bool shunned() const noexcept;
  // How far its summaries say that it reaches.
  MatchedDepths Match(std::span<const BlockKey> keys, std::size_t known) const noexcept {
    return MatchBoth(summary_, disk_summary_, keys, known);
  }
  Candidate Consider(std::span<const BlockKey> keys, std::size_t local) const override;
  Awaitable<FetchOutcome> Fetch(FetchJob job) override;
  void Describe(kvmmesh::PeerStatus& out) const;

 private:
  // Questions for its summaries; opens the channel for it if it is not usable, and replaces one
  // that the peer has closed since.
  Awaitable<Status> PullOn();
  Awaitable<Status> PullOnce(std::shared_ptr<Channel> channel);
  // Brings `known` up to date. Whether the peer has a disk cache that can be read, too.
  Awaitable<Result<bool>> PullSummary(std::shared_ptr<Channel> channel, PeerSummary& known, bool disk);
  Awaitable<Status> TakeSummary(std::shared_ptr<Channel> channel, PeerSummary& known, const kvmmesh::Summary& summary,
                                std::uint64_t payload_bytes, Limits limits);
  // As Fetch; an error: the connection is not usable any more.
  Awaitable<Status> FetchAnyhow(FetchJob job, FetchOutcome& out);
  Awaitable<Status> FetchOn(std::shared_ptr<Channel> channel, FetchJob job, FetchOutcome& out);
  // Publishes them, and counts them in `out`.
  Awaitable<Status> ReceiveBlocks(std::shared_ptr<Channel> channel, const FetchJob& job, const kvmmesh::FetchedBlocks& blocks,
                                  std::uint64_t payload_bytes, FetchOutcome& out);
  Limits UntilStalled(Time deadline) const noexcept;
  void Note(const Error& error);
  // One line when it has become silent, and one when it answers again.
  void LogPull(bool answered);

  NodeState& node_;
  const PeerConfig config_;
  std::string known_from_;
  PeerChannels channels_;
  boost::asio::steady_timer pause_;     // between two questions for the summary
  std::shared_ptr<Channel> summaries_;  // for those questions; null: it has to be opened
  bool stopped_ = false;
  PeerSummary summary_, disk_summary_;          // of its memory, of its disk
  PeerRate rate_;                               // of requests that its memory has answered
  PeerRate disk_rate_;                          // of those in which its disk had a part
  std::chrono::duration<double> round_trip_{};  // from a question to its answer; 0: not measured
  std::uint64_t next_request_ = 1;
  std::size_t in_flight_ = 0;
  std::uint64_t fetched_blocks_ = 0, fetched_bytes_ = 0, failures_ = 0;
  unsigned failed_pulls_ = 0;  // in a row
  bool told_silent_ = false;   // the log's last line of it
  std::string last_error_;
  Time pulled_{}, shunned_until_{};
};

}  // namespace kvm::mesh
