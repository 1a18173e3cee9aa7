// kvctl mesh find, explain: what this user's kvmd-mesh answers.
#include <algorithm>
#include <iostream>
#include <set>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/mesh/mesh_commands.h"
#include "client/kvctl/mesh/mesh_question.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::ctl {
namespace {
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
      sources.push_back({{"node", source.node()},
                         {"blocks", source.blocks()},
                         {"disk_blocks", source.disk()},
                         {"chosen", source.chosen()},
                         {"verdict", Printable(source.verdict())}});
    }
    PrintJson(boost::json::object{{"local", answer.local()}, {"reason", Printable(answer.reason())}, {"sources", std::move(sources)}});
    return kHealthy;
  }
  std::cout << answer.local() << " leading blocks are on this node\n";
  Table table({"source", ">blocks", ">on its disk", "chosen", "verdict"});
  for (const auto& source : answer.sources()) {
    table.Add({source.node(), std::to_string(source.blocks()), std::to_string(source.disk()), source.chosen() ? "yes" : "no",
               Printable(source.verdict())});
  }
  if (!table.empty()) table.Print(std::cout);
  if (!answer.reason().empty()) std::cout << "nothing would be fetched: " << Printable(answer.reason()) << '\n';
  return kHealthy;
}

}  // namespace

int RunMeshFind(const CommonOptions& common, const std::string& socket, const KeyQueryOptions& options) {
  const Result<Question> question = Resolve(common, options);
  if (!question) return Fail(question.error());
  kvmmesh::LocalMessage request;
  request.mutable_find_query()->set_keys(mesh::EncodeKeys(question->query.keys));
  const Result<kvmmesh::LocalMessage> answer = AskMesh(common, socket, request);
  if (!answer || !answer->has_find_answer()) return FailWithoutAnswer(answer);
  const kvmmesh::FindAnswer& found = answer->find_answer();
  if (common.json) {
    boost::json::array nodes;
    for (const auto& node : found.nodes())
      nodes.push_back({{"node", node.node()}, {"blocks", node.blocks()}, {"disk_blocks", node.disk()}, {"fresh", node.fresh()}});
    boost::json::object out{{"keys", question->query.keys.size()}, {"local", found.local()}, {"nodes", std::move(nodes)}};
    if (found.has_disk()) out["disk"] = found.disk();
    PrintJson(std::move(out));
    return kHealthy;
  }
  Table table({"node", ">blocks", ">on its disk", ""});
  table.Add({"this node", std::to_string(found.local()) + " of " + std::to_string(question->query.keys.size()), "", ""});
  if (found.has_disk()) table.Add({"disk of this node", std::to_string(found.disk()), "", ""});
  for (const auto& node : found.nodes()) {
    table.Add({node.node(), std::to_string(node.blocks()), std::to_string(node.disk()), node.fresh() ? "" : "it does not answer"});
  }
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
  const Result<kvmmesh::LocalMessage> answer = AskMesh(common, socket, request);
  if (!answer || !answer->has_explain_answer()) return FailWithoutAnswer(answer);
  return planned ? ShowPlan(common, answer->explain_answer()) : ShowRecent(common, answer->explain_answer());
}

}  // namespace kvm::ctl
