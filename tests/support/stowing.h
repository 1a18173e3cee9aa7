// Workers that stow into the host cache of a broker that is driven by hand. The copies are the test's own.
#pragma once

#include <string>
#include <vector>

#include "tests/support/broker_node.h"

namespace kvm::test {

inline constexpr std::uint32_t kSlots = 8;          // of a chunk
inline constexpr std::uint64_t kBlockBytes = 4096;  // so that a chunk is whole pages
inline constexpr std::uint64_t kChunk = kSlots * kBlockBytes;

inline Config CacheOf(std::uint32_t chunks) {
  Config config;
  config.host_cache_bytes = chunks * kChunk;
  config.host_cache_chunk_bytes = kChunk;
  config.orphan_ttl_s = 0;
  return config;
}

// A worker with a region, and all that kvmd has told it.
struct Stowing {
  Stowing(Node& its_node, const std::string& name, std::uint32_t uid = 1000, std::uint32_t blocks = 64,
          std::uint64_t block_bytes = kBlockBytes)
      : node(its_node), region(name, LlamaSpec(), blocks, block_bytes) {
    id = node.Join(peer, kDeadPid, uid);
    node.Register(id, peer, region);
  }
  // Of a process that the test can end, and a client that kvmd knows again over a new connection.
  Stowing(Node& its_node, const std::string& name, const Sleeper& process, std::uint64_t instance)
      : node(its_node), region(name, LlamaSpec(), 64, kBlockBytes) {
    id = node.Join(peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd(), instance);
    node.Register(id, peer, region);
  }

  // Makes blocks [from, to) readable under keys {first + i, salt}, each one's parent the one before.
  std::vector<PublishRecord> Write(std::uint32_t from, std::uint32_t to, std::uint64_t salt = 1) {
    std::vector<PublishRecord> records;
    for (std::uint32_t block = from; block < to; ++block) {
      records.push_back(region.Write(block, {salt * 1000 + block, salt}));
      records.back().parent_lo = salt * 1000 + block - 1;
      records.back().depth = block - from;
    }
    return records;
  }
  void Send(const std::vector<PublishRecord>& records, bool asked = false) {
    kvmwire::ClientMessage message;
    kvmwire::Stow& stow = *message.mutable_stow();
    stow.set_region(region.row);
    stow.set_region_epoch(region.region_epoch);
    stow.set_records(records.data(), records.size() * sizeof(PublishRecord));
    stow.set_asked(asked);
    node.Handle(id, message);
  }
  kvmwire::StowReply Offer(const std::vector<PublishRecord>& records, bool asked = false) {
    Send(records, asked);
    node.WorkAll();
    return peer.Take(Body::kStowReply).message.stow_reply();
  }
  void Done(const kvmwire::StowReply& reply, bool stored = true) {
    kvmwire::ClientMessage message;
    for (const kvmwire::StowGrant& grant : reply.grants()) {
      kvmwire::StowOutcome& outcome = *message.mutable_stow_done()->add_outcomes();
      outcome.set_region(grant.region());
      outcome.set_region_epoch(grant.region_epoch());
      outcome.set_slot(grant.slot());
      outcome.set_generation(grant.generation());
      outcome.set_stored(stored);
    }
    node.Handle(id, message);
    node.WorkAll();
  }
  // How many were granted.
  int Stow(const std::vector<PublishRecord>& records) {
    const kvmwire::StowReply reply = Offer(records);
    Done(reply);
    return reply.grants_size();
  }

  // The announcement of a chunk.
  Received Announced() {
    Received announced = peer.Take(Body::kRegionAnnounce);
    while (!announced.message.region_announce().host_cache()) announced = peer.Take(Body::kRegionAnnounce);
    return announced;
  }

  Node& node;
  FakePeer peer;
  ClientId id = 0;
  WireRegion region;
};

}  // namespace kvm::test
