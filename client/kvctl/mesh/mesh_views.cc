// kvctl mesh status, peers, find, explain: what this user's kvmd-mesh answers.
#include <algorithm>
#include <iostream>
#include <set>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/mesh/mesh_commands.h"
#include "proto/mesh/mesh_frame.h"
#include "proto/mesh/mesh_request.h"
#include "proto/mesh/mesh_socket.h"

namespace kvm::ctl {
namespace {

Result<kvmmesh::LocalMessage> Ask(const CommonOptions& common, const std::string& socket, const kvmmesh::LocalMessage& request) {
  return mesh::AskMesh(socket.empty() ? mesh::DefaultMeshSocket() : socket, request, std::chrono::steady_clock::now() + common.timeout());
}

int FailWithoutAnswer(const Result<kvmmesh::LocalMessage>& answer) {
  return Fail(answer ? MakeError(Errc::kProtocol, "kvmd-mesh answered with something else") : answer.error());
}

Result<kvmmesh::LocalMessage> AskStatus(const CommonOptions& common, const std::string& socket) {
  kvmmesh::LocalMessage request;
  request.mutable_status_query();
  return Ask(common, socket, request);
}

std::string Rate(std::uint64_t bytes_per_s) { return bytes_per_s == 0 ? "-" : HumanBytes(bytes_per_s) + "/s"; }

boost::json::object ToJson(const kvmmesh::PeerStatus& peer) {
  return {{"node", peer.node()},
          {"address", peer.address()},
          {"known_from", peer.known_from()},
          {"fresh", peer.fresh()},
          {"shunned", peer.shunned()},
          {"keys", peer.keys()},
          {"fetched_blocks", peer.fetched_blocks()},
          {"fetched_bytes", peer.fetched_bytes()},
          {"in_flight", peer.in_flight()},
          {"bytes_per_s", peer.bytes_per_s()},
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

// The prompt's keys, with the registry's regions if kvmd is there. Keys in hex need no kvmd.
struct Question {
  KeyQuery query;
  std::vector<RegionEntry> regions;
};

Result<Question> Resolve(const CommonOptions& common, const KeyQueryOptions& options) {
  Question out;
  std::vector<ModelEntry> models;
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (observer) {
    models = ReadModels(observer->registry());
    out.regions = ReadRegions(observer->registry());
  }
  Result<KeyQuery> query = ResolveKeys(options, models);
  if (!query) return query.error();
  out.query = std::move(*query);
  if (out.query.keys.size() > mesh::kMaxKeys)
    return MakeError(Errc::kInvalidArgument, "kvmd-mesh takes " + std::to_string(mesh::kMaxKeys) + " keys at a time");
  return out;
}

// Zero: the regions differ, or there is none.
std::uint64_t BlockBytes(const std::vector<RegionEntry>& regions) {
  std::set<std::uint64_t> sizes;
  for (const RegionEntry& region : regions) sizes.insert(region.info.block_bytes);
  return sizes.size() == 1 ? *sizes.begin() : 0;
}

int ShowRecent(const CommonOptions& common, const kvmmesh::ExplainAnswer& answer) {
  if (common.json) {
    boost::json::array joins;
    for (const auto& join : answer.recent()) {
      joins.push_back({{"ago_ms", join.ago_ms()},
                       {"keys", join.keys()},
                       {"local_before", join.before()},
                       {"fetched", join.fetched()},
                       {"took_ms", join.took_ms()},
                       {"sources", Printable(join.sources())},
                       {"reason", Printable(join.reason())}});
    }
    PrintJson(boost::json::object{{"joins", std::move(joins)}});
    return kHealthy;
  }
  Table table({">ago", ">blocks", ">local", ">fetched", ">took", "asked", "why no more"});
  for (const auto& join : answer.recent()) {
    table.Add({HumanNanoseconds(static_cast<double>(join.ago_ms()) * 1e6), std::to_string(join.keys()), std::to_string(join.before()),
               std::to_string(join.fetched()), std::to_string(join.took_ms()) + " ms",
               join.sources().empty() ? "-" : Printable(join.sources()), Printable(join.reason())});
  }
  if (table.empty()) std::cout << "no joins yet\n";
  if (!table.empty()) table.Print(std::cout);
  return kHealthy;
}

int ShowPlan(const CommonOptions& common, const kvmmesh::ExplainAnswer& answer) {
  if (common.json) {
    boost::json::array sources;
    for (const auto& source : answer.sources()) {
      sources.push_back(
          {{"node", source.node()}, {"blocks", source.blocks()}, {"chosen", source.chosen()}, {"verdict", Printable(source.verdict())}});
    }
    PrintJson(boost::json::object{{"local", answer.local()}, {"reason", Printable(answer.reason())}, {"sources", std::move(sources)}});
    return kHealthy;
  }
  std::cout << answer.local() << " leading blocks are on this node\n";
  Table table({"source", ">blocks", "chosen", "verdict"});
  for (const auto& source : answer.sources())
    table.Add({source.node(), std::to_string(source.blocks()), source.chosen() ? "yes" : "no", Printable(source.verdict())});
  if (!table.empty()) table.Print(std::cout);
  if (!answer.reason().empty()) std::cout << "nothing would be fetched: " << Printable(answer.reason()) << '\n';
  return kHealthy;
}

}  // namespace

int RunMeshStatus(const CommonOptions& common, const std::string& socket) {
  const Result<kvmmesh::LocalMessage> answer = AskStatus(common, socket);
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
                            {"joins", status.joins()},
                            {"joined_blocks", status.joined_blocks()},
                            {"etcd", ToJson(status)},
                            {"peers", std::move(peers)}};
    if (status.has_disk()) out["disk"] = ToJson(status.disk());
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
  fields.Add("served", HumanCount(status.served_blocks()) + " blocks, " + HumanBytes(status.served_bytes()));
  fields.Add("joins", HumanCount(status.joins()) + ", which brought " + HumanCount(status.joined_blocks()) + " blocks");
  if (status.has_disk()) AddDisk(status.disk(), fields);
  fields.Print(std::cout);
  return kHealthy;
}

int RunMeshPeers(const CommonOptions& common, const std::string& socket) {
  const Result<kvmmesh::LocalMessage> answer = AskStatus(common, socket);
  if (!answer || !answer->has_status()) return FailWithoutAnswer(answer);
  if (common.json) {
    boost::json::array peers;
    for (const auto& peer : answer->status().peers()) peers.push_back(ToJson(peer));
    PrintJson(boost::json::object{{"peers", std::move(peers)}});
    return kHealthy;
  }
  Table table({"node", "address", "known from", "state", ">blocks", ">fetched", ">rate", ">round trip", ">failures", "last error"});
  for (const auto& peer : answer->status().peers()) {
    table.Add({peer.node(), peer.address(), peer.known_from(),
               peer.shunned() ? "shunned"
               : peer.fresh() ? "answers"
                              : "silent",
               HumanCount(peer.keys()), HumanBytes(peer.fetched_bytes()), Rate(peer.bytes_per_s()),
               peer.round_trip_us() == 0 ? "-" : HumanNanoseconds(static_cast<double>(peer.round_trip_us()) * 1e3),
               HumanCount(peer.failures()), Printable(peer.last_error())});
  }
  if (table.empty()) std::cout << "no peers are known\n";
  if (!table.empty()) table.Print(std::cout);
  return kHealthy;
}

int RunMeshFind(const CommonOptions& common, const std::string& socket, const KeyQueryOptions& options) {
  const Result<Question> question = Resolve(common, options);
  if (!question) return Fail(question.error());
  kvmmesh::LocalMessage request;
  request.mutable_find_query()->set_keys(mesh::EncodeKeys(question->query.keys));
  const Result<kvmmesh::LocalMessage> answer = Ask(common, socket, request);
  if (!answer || !answer->has_find_answer()) return FailWithoutAnswer(answer);
  const kvmmesh::FindAnswer& found = answer->find_answer();
  if (common.json) {
    boost::json::array nodes;
    for (const auto& node : found.nodes()) nodes.push_back({{"node", node.node()}, {"blocks", node.blocks()}, {"fresh", node.fresh()}});
    boost::json::object out{{"keys", question->query.keys.size()}, {"local", found.local()}, {"nodes", std::move(nodes)}};
    if (found.has_disk()) out["disk"] = found.disk();
    PrintJson(std::move(out));
    return kHealthy;
  }
  Table table({"node", ">blocks", ""});
  table.Add({"this node", std::to_string(found.local()) + " of " + std::to_string(question->query.keys.size()), ""});
  if (found.has_disk()) table.Add({"disk of this node", std::to_string(found.disk()), ""});
  for (const auto& node : found.nodes()) table.Add({node.node(), std::to_string(node.blocks()), node.fresh() ? "" : "it does not answer"});
  table.Print(std::cout);
  return kHealthy;
}

int RunMeshExplain(const CommonOptions& common, const std::string& socket, const MeshExplainOptions& options) {
  kvmmesh::LocalMessage request;
  kvmmesh::ExplainQuery& query = *request.mutable_explain_query();
  const bool planned = !options.query.keys.empty() || !options.query.tokens.empty() || !options.query.tokens_file.empty();
  if (planned) {
    const Result<Question> question = Resolve(common, options.query);
    if (!question) return Fail(question.error());
    const std::uint64_t block_bytes = options.block_bytes != 0 ? options.block_bytes : BlockBytes(question->regions);
    if (options.prefill_blocks_per_s > 0 && block_bytes == 0)
      return Fail(MakeError(Errc::kInvalidArgument, "--block-size is needed: the regions here do not agree, or there is none"));
    kvmmesh::Join& join = *query.mutable_join();
    join.set_keys(mesh::EncodeKeys(question->query.keys));
    join.mutable_shape()->set_block_bytes(block_bytes);
    join.set_min_blocks(options.min_blocks);
    join.set_source_hint(options.source_hint);
    join.set_prefill_blocks_per_s(options.prefill_blocks_per_s);
  }
  const Result<kvmmesh::LocalMessage> answer = Ask(common, socket, request);
  if (!answer || !answer->has_explain_answer()) return FailWithoutAnswer(answer);
  return planned ? ShowPlan(common, answer->explain_answer()) : ShowRecent(common, answer->explain_answer());
}

}  // namespace kvm::ctl
