// kvctl mesh status and peers: what this user's kvmd-mesh says of itself and of its peers.
#include <algorithm>
#include <iostream>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/mesh/mesh_commands.h"
#include "client/kvctl/mesh/mesh_question.h"

namespace kvm::ctl {
namespace {

std::string Rate(std::uint64_t bytes_per_s) { return bytes_per_s == 0 ? "-" : HumanBytes(bytes_per_s) + "/s"; }

boost::json::object ToJson(const kvmmesh::PeerStatus& peer) {
  return {{"node", peer.node()},
          {"address", peer.address()},
          {"known_from", peer.known_from()},
          {"fresh", peer.fresh()},
          {"shunned", peer.shunned()},
          {"keys", peer.keys()},
          {"disk_keys", peer.disk_keys()},
          {"fetched_blocks", peer.fetched_blocks()},
          {"fetched_bytes", peer.fetched_bytes()},
          {"in_flight", peer.in_flight()},
          {"bytes_per_s", peer.bytes_per_s()},
          {"disk_bytes_per_s", peer.disk_bytes_per_s()},
          {"round_trip_us", peer.round_trip_us()},
          {"failures", peer.failures()},
          {"last_error", Printable(peer.last_error())}};
}

std::string_view EntryText(kvmmesh::EtcdStatus::Entry entry) {
  switch (entry) {
    case kvmmesh::EtcdStatus::REGISTERED: return "registered";
    case kvmmesh::EtcdStatus::NAME_TAKEN: return "name taken";
    default: return "not registered";
  }
}

boost::json::value ToJson(const kvmmesh::Status& status) {
  if (!status.has_etcd()) return nullptr;
  const kvmmesh::EtcdStatus& etcd = status.etcd();
  return boost::json::object{
      {"endpoint", etcd.endpoint()},     {"connected", etcd.connected()},     {"entry", EntryText(etcd.entry())},
      {"advertised", etcd.advertised()}, {"lease_ttl_s", etcd.lease_ttl_s()}, {"members", etcd.members()},
      {"leaving", etcd.leaving()},       {"revision", etcd.revision()},       {"last_error", Printable(etcd.last_error())}};
}

void AddEtcd(FieldList& fields, const kvmmesh::EtcdStatus& etcd) {
  fields.Add("etcd", etcd.connected() ? "connected to " + etcd.endpoint() : "away: " + Printable(etcd.last_error()));
  const std::string lease = std::to_string(etcd.lease_ttl_s()) + " s";
  switch (etcd.entry()) {
    case kvmmesh::EtcdStatus::REGISTERED: fields.Add("this node in etcd", etcd.advertised() + ", with a lease of " + lease); break;
    case kvmmesh::EtcdStatus::NAME_TAKEN: fields.Add("this node in etcd", "not listed: another process has its name"); break;
    default: fields.Add("this node in etcd", "not listed yet");
  }
  const std::string leaving =
      etcd.leaving() == 0 ? "" : ", of which " + std::to_string(etcd.leaving()) + " have vanished and are kept for a while";
  fields.Add("other nodes in etcd", std::to_string(etcd.members()) + leaving);
}

boost::json::value ToJson(const kvmmesh::DiskStatus& disk) {
  return {{"path", Printable(disk.path())},
          {"state", disk.state()},
          {"reason", Printable(disk.reason())},
          {"io", disk.io()},
          {"policy", disk.policy()},
          {"blocks", disk.blocks()},
          {"bytes", disk.bytes()},
          {"file_bytes", disk.file_bytes()},
          {"limit_bytes", disk.limit_bytes()},
          {"read_blocks", disk.read_blocks()},
          {"read_bytes", disk.read_bytes()},
          {"written_blocks", disk.written_blocks()},
          {"written_bytes", disk.written_bytes()},
          {"moved_blocks", disk.moved_blocks()},
          {"evicted_blocks", disk.evicted_blocks()},
          {"bad_records", disk.bad_records()},
          {"failed_reads", disk.failed_reads()},
          {"waiting_blocks", disk.waiting_blocks()},
          {"bytes_per_s", disk.bytes_per_s()}};
}

void AddDisk(const kvmmesh::DiskStatus& disk, FieldList& fields) {
  fields.Add("disk cache", disk.state() + (disk.reason().empty() ? "" : ": " + Printable(disk.reason())) + " (" + Printable(disk.path()) +
                               ", " + disk.io() + ", " + disk.policy() + ")");
  fields.Add("disk blocks", HumanCount(disk.blocks()) + ", " + HumanBytes(disk.bytes()) + " of " + HumanBytes(disk.limit_bytes()));
  fields.Add("disk reads", HumanCount(disk.read_blocks()) + " blocks, " + HumanBytes(disk.read_bytes()) + ", " + Rate(disk.bytes_per_s()) +
                               "; " + HumanCount(disk.bad_records()) + " bad records, " + HumanCount(disk.failed_reads()) + " failed");
  fields.Add("disk writes", HumanCount(disk.written_blocks()) + " blocks, " + HumanBytes(disk.written_bytes()) + "; " +
                                HumanCount(disk.waiting_blocks()) + " wait, " + HumanCount(disk.moved_blocks()) + " moved, " +
                                HumanCount(disk.evicted_blocks()) + " evicted");
}

boost::json::value ToJson(const kvmmesh::EventStatus& events) {
  return {{"endpoint", Printable(events.endpoint())},
          {"replay_endpoint", Printable(events.replay_endpoint())},
          {"sequence", events.sequence()},
          {"blocks", events.blocks()},
          {"described_blocks", events.described_blocks()},
          {"undescribed_blocks", events.undescribed_blocks()},
          {"unreachable_blocks", events.unreachable_blocks()},
          {"other_variant_blocks", events.other_variant_blocks()},
          {"forgotten_blocks", events.forgotten_blocks()},
          {"refused_blocks", events.refused_blocks()},
          {"batches", events.batches()},
          {"stored_blocks", events.stored_blocks()},
          {"removed_blocks", events.removed_blocks()},
          {"replays", events.replays()},
          {"snapshots", events.snapshots()}};
}

void AddEvents(const kvmmesh::EventStatus& events, FieldList& fields) {
  const std::string replay = events.replay_endpoint().empty() ? "" : ", replay at " + Printable(events.replay_endpoint());
  fields.Add("events", Printable(events.endpoint()) + replay);
  fields.Add("told to routers", HumanCount(events.blocks()) + " blocks; " + HumanCount(events.undescribed_blocks()) +
                                    " more have no tokens, " + HumanCount(events.unreachable_blocks()) + " no block before them, " +
                                    HumanCount(events.other_variant_blocks()) + " are of another variant of a model");
  fields.Add("events sent", HumanCount(events.batches()) + " batches, " + HumanCount(events.stored_blocks()) + " blocks stored, " +
                                HumanCount(events.removed_blocks()) + " removed; " + HumanCount(events.replays()) + " replays, " +
                                HumanCount(events.snapshots()) + " snapshots");
  fields.Add("blocks described", HumanCount(events.described_blocks()) + "; " + HumanCount(events.forgotten_blocks()) +
                                     " forgotten for lack of room, " + HumanCount(events.refused_blocks()) + " refused");
}

}  // namespace

int RunMeshStatus(const CommonOptions& common, const std::string& socket) {
  const Result<kvmmesh::LocalMessage> answer = AskMeshStatus(common, socket);
  if (!answer || !answer->has_status()) return FailWithoutAnswer(answer);
  const kvmmesh::Status& status = answer->status();
  const auto fresh = std::count_if(status.peers().begin(), status.peers().end(), [](const auto& peer) { return peer.fresh(); });
  if (common.json) {
    boost::json::array peers;
    for (const auto& peer : status.peers()) peers.push_back(ToJson(peer));
    boost::json::object out{{"node", status.node()},
                            {"domain", status.domain()},
                            {"listen", status.listen()},
                            {"encrypted", status.encrypted()},
                            {"transfer", status.transfer()},
                            {"ucx_sent_bytes", status.ucx_sent_bytes()},
                            {"ucx_received_bytes", status.ucx_received_bytes()},
                            {"keys", status.keys()},
                            {"served_blocks", status.served_blocks()},
                            {"served_bytes", status.served_bytes()},
                            {"served_from_disk", status.served_from_disk()},
                            {"joins", status.joins()},
                            {"joined_blocks", status.joined_blocks()},
                            {"failed_work", status.failed_work()},
                            {"last_failed_work", Printable(status.last_failed_work())},
                            {"etcd", ToJson(status)},
                            {"peers", std::move(peers)}};
    if (status.has_disk()) out["disk"] = ToJson(status.disk());
    if (status.has_events()) out["events"] = ToJson(status.events());
    PrintJson(std::move(out));
    return kHealthy;
  }
  FieldList fields;
  fields.Add("node", status.node());
  fields.Add("domain", status.domain().empty() ? "not connected to kvmd yet" : status.domain());
  fields.Add("peers connect to", status.listen() + (status.encrypted() ? " (TLS)" : " (not encrypted)"));
  if (status.transfer() == "ucx") {
    fields.Add("over UCX",
               HumanBytes(status.ucx_sent_bytes()) + " sent, " + HumanBytes(status.ucx_received_bytes()) + " received (not encrypted)");
  }
  fields.Add("peers that answer", std::to_string(fresh) + " of " + std::to_string(status.peers_size()));
  if (status.has_etcd()) AddEtcd(fields, status.etcd());
  fields.Add("blocks for peers", HumanCount(status.keys()));
  fields.Add("served", HumanCount(status.served_blocks()) + " blocks, " + HumanBytes(status.served_bytes()) + "; " +
                           HumanCount(status.served_from_disk()) + " of them from the disk");
  fields.Add("joins", HumanCount(status.joins()) + ", which brought " + HumanCount(status.joined_blocks()) + " blocks");
  if (status.has_disk()) AddDisk(status.disk(), fields);
  if (status.has_events()) AddEvents(status.events(), fields);
  if (status.failed_work() > 0)
    fields.Add("failed work", HumanCount(status.failed_work()) + ", at last " + Printable(status.last_failed_work()));
  fields.Print(std::cout);
  return kHealthy;
}

int RunMeshPeers(const CommonOptions& common, const std::string& socket) {
  const Result<kvmmesh::LocalMessage> answer = AskMeshStatus(common, socket);
  if (!answer || !answer->has_status()) return FailWithoutAnswer(answer);
  if (common.json) {
    boost::json::array peers;
    for (const auto& peer : answer->status().peers()) peers.push_back(ToJson(peer));
    PrintJson(boost::json::object{{"peers", std::move(peers)}});
    return kHealthy;
  }
  Table table(
      {"node", "address", "known from", "state", ">blocks", ">on disk", ">fetched", ">rate", ">round trip", ">failures", "last error"});
  for (const auto& peer : answer->status().peers()) {
    table.Add({peer.node(), peer.address(), peer.known_from(),
               peer.shunned() ? "shunned"
               : peer.fresh() ? "answers"
                              : "silent",
               HumanCount(peer.keys()), HumanCount(peer.disk_keys()), HumanBytes(peer.fetched_bytes()), Rate(peer.bytes_per_s()),
               peer.round_trip_us() == 0 ? "-" : HumanNanoseconds(static_cast<double>(peer.round_trip_us()) * 1e3),
               HumanCount(peer.failures()), Printable(peer.last_error())});
  }
  if (table.empty()) std::cout << "no peers are known\n";
  if (!table.empty()) table.Print(std::cout);
  return kHealthy;
}

}  // namespace kvm::ctl
