#include "client/kvctl/exporter/mesh_metrics.h"

namespace kvm::ctl {
namespace {

// Members of a scoped enum, by their names alone.
using enum Metric;

double Number(std::uint64_t count) { return static_cast<double>(count); }

void AddPeers(MetricPage& page, const kvmmesh::Status& status) {
  const std::string &domain = status.domain(), &node = status.node();
  // All states, so that a curve does not end where there is none of one.
  for (const char* state : {"answers", "silent", "shunned"}) page.Add(kvmd_mesh_peers, 0, {domain, node, state});
  for (const kvmmesh::PeerStatus& peer : status.peers()) {
    page.Add(kvmd_mesh_peers, 1, {domain, node, peer.shunned() ? "shunned" : peer.fresh() ? "answers" : "silent"});
    page.Add(kvmd_mesh_fetched_blocks_total, Number(peer.fetched_blocks()), {domain, node, peer.node()});
    page.Add(kvmd_mesh_fetched_bytes_total, Number(peer.fetched_bytes()), {domain, node, peer.node()});
    page.Add(kvmd_mesh_peer_failures_total, Number(peer.failures()), {domain, node, peer.node()});
  }
}

void AddDisk(MetricPage& page, const kvmmesh::Status& status) {
  const std::string &domain = status.domain(), &node = status.node();
  const kvmmesh::DiskStatus& disk = status.disk();
  page.Add(kvmd_mesh_disk_on, disk.state() == "on" ? 1 : 0, {domain, node});
  page.Add(kvmd_mesh_disk_blocks, Number(disk.blocks()), {domain, node});
  page.Add(kvmd_mesh_disk_file_bytes, Number(disk.file_bytes()), {domain, node});
  page.Add(kvmd_mesh_disk_limit_bytes, Number(disk.limit_bytes()), {domain, node});
  page.Add(kvmd_mesh_disk_read_blocks_total, Number(disk.read_blocks()), {domain, node});
  page.Add(kvmd_mesh_disk_written_blocks_total, Number(disk.written_blocks()), {domain, node});
  page.Add(kvmd_mesh_disk_evicted_blocks_total, Number(disk.evicted_blocks()), {domain, node});
  page.Add(kvmd_mesh_disk_bad_records_total, Number(disk.bad_records()), {domain, node});
}

void AddEvents(MetricPage& page, const kvmmesh::Status& status) {
  const std::string &domain = status.domain(), &node = status.node();
  const kvmmesh::EventStatus& events = status.events();
  page.Add(kvmd_mesh_events_blocks, Number(events.blocks()), {domain, node});
  page.Add(kvmd_mesh_events_untold_blocks, Number(events.undescribed_blocks()), {domain, node, "undescribed"});
  page.Add(kvmd_mesh_events_untold_blocks, Number(events.unreachable_blocks()), {domain, node, "unreachable"});
  page.Add(kvmd_mesh_events_untold_blocks, Number(events.other_variant_blocks()), {domain, node, "other_variant"});
  page.Add(kvmd_mesh_events_batches_total, Number(events.batches()), {domain, node});
  page.Add(kvmd_mesh_events_told_blocks_total, Number(events.stored_blocks()), {domain, node, "stored"});
  page.Add(kvmd_mesh_events_told_blocks_total, Number(events.removed_blocks()), {domain, node, "removed"});
  page.Add(kvmd_mesh_events_replays_total, Number(events.replays()), {domain, node, "batches"});
  page.Add(kvmd_mesh_events_replays_total, Number(events.snapshots()), {domain, node, "snapshot"});
  page.Add(kvmd_mesh_events_forgotten_blocks_total, Number(events.forgotten_blocks()), {domain, node});
  page.Add(kvmd_mesh_events_refused_blocks_total, Number(events.refused_blocks()), {domain, node});
}

}  // namespace

void AddMesh(MetricPage& page, const std::string& socket, const Result<kvmmesh::LocalMessage>& answer) {
  const bool up = answer && answer->has_status();
  page.Add(kvmd_mesh_up, up ? 1 : 0, {socket});
  if (!up) return;
  const kvmmesh::Status& status = answer->status();
  const std::string &domain = status.domain(), &node = status.node();
  page.Add(kvmd_mesh_blocks, Number(status.keys()), {domain, node});
  page.Add(kvmd_mesh_served_blocks_total, Number(status.served_blocks()), {domain, node});
  page.Add(kvmd_mesh_served_bytes_total, Number(status.served_bytes()), {domain, node});
  page.Add(kvmd_mesh_joins_total, Number(status.joins()), {domain, node});
  page.Add(kvmd_mesh_joined_blocks_total, Number(status.joined_blocks()), {domain, node});
  page.Add(kvmd_mesh_failed_work_total, Number(status.failed_work()), {domain, node});
  AddPeers(page, status);
  if (status.has_disk()) AddDisk(page, status);
  if (status.has_events()) AddEvents(page, status);
}

}  // namespace kvm::ctl
