#include "client/mesh/node/serving/node_status.h"

namespace kvm::mesh {
namespace {

// Each field by its name, so that one that is added later is not shown without a thought.
void CopyPeer(const kvmmesh::PeerStatus& all, kvmmesh::PeerStatus& out) {
  out.set_node(all.node());
  out.set_fresh(all.fresh());
  out.set_shunned(all.shunned());
  out.set_keys(all.keys());
  out.set_fetched_blocks(all.fetched_blocks());
  out.set_fetched_bytes(all.fetched_bytes());
  out.set_failures(all.failures());
}

void CopyDisk(const kvmmesh::DiskStatus& all, kvmmesh::DiskStatus& out) {
  out.set_state(all.state());
  out.set_blocks(all.blocks());
  out.set_file_bytes(all.file_bytes());
  out.set_limit_bytes(all.limit_bytes());
  out.set_read_blocks(all.read_blocks());
  out.set_written_blocks(all.written_blocks());
  out.set_evicted_blocks(all.evicted_blocks());
  out.set_bad_records(all.bad_records());
}

void CopyEvents(const kvmmesh::EventStatus& all, kvmmesh::EventStatus& out) {
  out.set_blocks(all.blocks());
  out.set_undescribed_blocks(all.undescribed_blocks());
  out.set_unreachable_blocks(all.unreachable_blocks());
  out.set_other_variant_blocks(all.other_variant_blocks());
  out.set_forgotten_blocks(all.forgotten_blocks());
  out.set_refused_blocks(all.refused_blocks());
  out.set_batches(all.batches());
  out.set_stored_blocks(all.stored_blocks());
  out.set_removed_blocks(all.removed_blocks());
  out.set_replays(all.replays());
  out.set_snapshots(all.snapshots());
}

}  // namespace

void NodeStatus::Describe(kvmmesh::Status& out) const {
  out.set_node(node_.config.node);
  out.set_domain(node_.client->domain());
  out.set_keys(node_.summary.keys());
  out.set_served_blocks(node_.counters.served_blocks);
  out.set_served_bytes(node_.counters.served_bytes);
  out.set_joins(node_.counters.joins);
  out.set_joined_blocks(node_.counters.joined_blocks);
  out.set_listen(address_);
  out.set_encrypted(node_.config.tls.all());
  const BulkTotals bulk = transfer_.bulk();
  out.set_transfer(bulk.way);
  out.set_ucx_sent_bytes(bulk.sent_bytes);
  out.set_ucx_received_bytes(bulk.received_bytes);
  for (const auto& peer : peers_.all()) peer->Describe(*out.add_peers());
  for (const auto& membership : memberships_) membership->Describe(out);
  if (node_.disk) node_.disk->Describe(node_.client->domain(), *out.mutable_disk());
  if (node_.events) node_.events->Describe(*out.mutable_events());
  out.set_served_from_disk(node_.counters.served_from_disk);
  out.set_failed_work(node_.work_failures.count());
  out.set_last_failed_work(node_.work_failures.last());
}

void NodeStatus::DescribeForMonitors(kvmmesh::Status& out) const {
  kvmmesh::Status all;
  Describe(all);
  out.set_node(all.node());
  out.set_domain(all.domain());
  out.set_keys(all.keys());
  out.set_served_blocks(all.served_blocks());
  out.set_served_bytes(all.served_bytes());
  out.set_joins(all.joins());
  out.set_joined_blocks(all.joined_blocks());
  out.set_served_from_disk(all.served_from_disk());
  out.set_failed_work(all.failed_work());
  for (const kvmmesh::PeerStatus& peer : all.peers()) CopyPeer(peer, *out.add_peers());
  if (all.has_disk()) CopyDisk(all.disk(), *out.mutable_disk());
  if (all.has_events()) CopyEvents(all.events(), *out.mutable_events());
}

}  // namespace kvm::mesh
