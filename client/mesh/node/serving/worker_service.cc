#include "client/mesh/node/serving/worker_service.h"

#include "client/mesh/events/block_description.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kWorkerIdleTimeout{600'000};
constexpr milliseconds kAnswerTimeout{1000};

}  // namespace

Awaitable<void> WorkerService::Serve(std::shared_ptr<Channel> channel) {
  for (;;) {
    Result<Received> received = co_await NextRequest(channel);
    kvmmesh::LocalMessage request, answer;
    if (!received || received->payload_bytes != 0 || !request.ParseFromString(received->message)) break;
    const bool known = co_await Answer(request, answer);
    if (!known) break;
    const std::string bytes = answer.SerializeAsString();
    Status sent = co_await channel->Send(bytes, {}, steady_clock::now() + kAnswerTimeout);
    if (!sent) break;
  }
  channel->Close();
}

Awaitable<Result<Received>> WorkerService::NextRequest(std::shared_ptr<Channel> channel) {
  const WaitingChannels::Entry waits(waiting_, channel);
  co_return co_await channel->Receive(steady_clock::now() + kWorkerIdleTimeout);
}

Awaitable<bool> WorkerService::Answer(const kvmmesh::LocalMessage& request, kvmmesh::LocalMessage& answer) {
  if (request.has_join()) {
    *answer.mutable_joined() = co_await joins_.Join(request.join());
  } else if (request.has_status_query()) {
    status_.Describe(*answer.mutable_status());
  } else if (request.has_find_query()) {
    Find(request.find_query(), *answer.mutable_find_answer());
  } else if (request.has_explain_query()) {
    Explain(request.explain_query(), *answer.mutable_explain_answer());
  } else if (request.has_describe()) {
    TakeDescription(request.describe(), *answer.mutable_described());
  } else {
    co_return false;
  }
  co_return true;
}

void WorkerService::TakeDescription(const kvmmesh::Describe& request, kvmmesh::Described& out) {
  out.set_process(node_.process);
  out.set_wanted(node_.events != nullptr);
  if (!node_.events) return;
  Result<BlockDescription> description = DecodeDescription(request);
  out.set_taken(description && node_.events->Describe(std::move(*description)));
}

void WorkerService::Find(const kvmmesh::FindQuery& query, kvmmesh::FindAnswer& out) const {
  const Result<std::vector<BlockKey>> keys = DecodeKeys(query.keys());
  if (!keys) return;
  out.set_local(static_cast<std::uint32_t>(node_.client->Find(*keys).size()));
  if (node_.disk) out.set_disk(static_cast<std::uint32_t>(node_.disk->LeadingBlocks(*keys)));
  out.set_has_disk(node_.disk != nullptr);
  for (const auto& peer : peers_.all()) {
    kvmmesh::FindAnswer::Node& node = *out.add_nodes();
    node.set_node(peer->name());
    node.set_fresh(peer->fresh());
    if (!peer->fresh()) continue;
    const MatchedDepths depths = peer->Match(*keys, 0);
    node.set_blocks(static_cast<std::uint32_t>(depths.all));
    node.set_disk(static_cast<std::uint32_t>(depths.all - depths.memory));
  }
}

void WorkerService::Explain(const kvmmesh::ExplainQuery& query, kvmmesh::ExplainAnswer& out) const {
  if (query.has_join()) {
    out = joins_.Explain(query.join());
    return;
  }
  const auto now = steady_clock::now();
  for (const JoinRecord& record : joins_.log().records()) {
    kvmmesh::ExplainAnswer::Recent& recent = *out.add_recent();
    recent.set_ago_ms(static_cast<std::uint64_t>(std::chrono::floor<milliseconds>(now - record.ended).count()));
    recent.set_keys(static_cast<std::uint32_t>(record.keys));
    recent.set_before(static_cast<std::uint32_t>(record.before));
    recent.set_fetched(static_cast<std::uint32_t>(record.fetched));
    recent.set_took_ms(static_cast<std::uint32_t>(record.took.count()));
    recent.set_sources(record.sources);
    recent.set_reason(record.reason);
  }
}

}  // namespace kvm::mesh
