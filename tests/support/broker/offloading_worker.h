// Workers that offload into the host cache of a broker that the test drives. The test makes the
// copies.
#pragma once

#include <string>
#include <vector>

#include "tests/support/broker/broker_node.h"

namespace kvm::test {

inline constexpr std::uint32_t kSlots = 8;          // of a slab
inline constexpr std::uint64_t kBlockBytes = 4096;  // so that a slab is whole pages
inline constexpr std::uint64_t kSlab = kSlots * kBlockBytes;

inline Config CacheOf(std::uint32_t slabs) {
  Config config;
  config.host_cache_bytes = slabs * kSlab;
  config.host_cache_slab_bytes = kSlab;
  config.orphan_ttl_s = 0;
  return config;
}

// A worker with a region, and all messages that kvmd has sent it.
struct OffloadingWorker {
  OffloadingWorker(Node& its_node, const std::string& name, std::uint32_t uid = 1000, std::uint32_t blocks = 64,
                   std::uint64_t block_bytes = kBlockBytes)
      : node(its_node), region(name, LlamaSpec(), blocks, block_bytes) {
    id = node.Join(connection, kDeadPid, uid);
    node.Register(id, connection, region);
  }
  // A worker whose process the test can end, and whose client kvmd recognises on a new connection.
  OffloadingWorker(Node& its_node, const std::string& name, const Sleeper& process, std::uint64_t instance)
      : node(its_node), region(name, LlamaSpec(), 64, kBlockBytes) {
    id = node.Join(connection, process.pid(), 1000, kvmwire::WORKER, process.PidFd(), instance);
    node.Register(id, connection, region);
  }

  // Makes blocks [from, to) readable under keys {first + i, salt}, each one's parent the one
  // before.
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
    kvmwire::PrepareStore& offload = *message.mutable_prepare_store();
    offload.set_region(region.row);
    offload.set_region_epoch(region.region_epoch);
    offload.set_records(records.data(), records.size() * sizeof(PublishRecord));
    offload.set_asked(asked);
    node.Handle(id, message);
  }
  kvmwire::PrepareStoreReply Offer(const std::vector<PublishRecord>& records, bool asked = false) {
    Send(records, asked);
    node.WorkAll();
    return connection.Take(Body::kPrepareStoreReply).message.prepare_store_reply();
  }
  static kvmwire::ClientMessage DoneMessage(const kvmwire::PrepareStoreReply& reply, bool stored = true) {
    kvmwire::ClientMessage message;
    for (const kvmwire::StoreGrant& grant : reply.grants()) {
      kvmwire::StoreOutcome& outcome = *message.mutable_complete_store()->add_outcomes();
      outcome.set_region(grant.region());
      outcome.set_region_epoch(grant.region_epoch());
      outcome.set_slot(grant.slot());
      outcome.set_generation(grant.generation());
      outcome.set_stored(stored);
    }
    return message;
  }
  void Done(const kvmwire::PrepareStoreReply& reply, bool stored = true) {
    node.Handle(id, DoneMessage(reply, stored));
    node.WorkAll();
  }
  // Returns how many were granted.
  int PrepareStore(const std::vector<PublishRecord>& records) {
    const kvmwire::PrepareStoreReply reply = Offer(records);
    Done(reply);
    return reply.grants_size();
  }

  // The announcement of a slab.
  Received Announced() {
    Received announced = connection.Take(Body::kRegionAnnounce);
    while (!announced.message.region_announce().host_cache()) announced = connection.Take(Body::kRegionAnnounce);
    return announced;
  }

  Node& node;
  FakeConnection connection;
  ClientId id = 0;
  WireRegion region;
};

}  // namespace kvm::test
