#include "daemon/broker/services/mark_service.h"

#include <cstring>
#include <vector>

#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {

Status MarkService::Mark(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::MarkComputing& mark = message.mark_computing();
  if (mark.keys().size() % sizeof(BlockKey) != 0 || mark.keys().size() > kMaxMarkBatch * sizeof(BlockKey))
    return MakeError(Errc::kProtocol, "mark: not a whole number of keys, or too many in one message");
  if (mark.mark() == 0 || mark.ttl_ms() == 0) {
    client.ReplyError(message.request_id(), MakeError(Errc::kInvalidArgument, "mark: it needs a number and a time to live"));
    return {};
  }
  std::vector<BlockKey> keys(mark.keys().size() / sizeof(BlockKey));
  if (!keys.empty()) std::memcpy(keys.data(), mark.keys().data(), mark.keys().size());
  const MarkTable::Marked marked =
      client.domain->marks().Mark(client.id, client.credentials.uid, mark.mark(), keys, MonotonicNs(), mark.ttl_ms());
  kvmwire::ServerMessage answer;
  answer.set_request_id(message.request_id());
  kvmwire::MarkComputingReply& reply = *answer.mutable_mark_computing_reply();
  reply.set_marked(marked.marked);
  reply.set_others(marked.others);
  reply.set_reason(marked.reason);
  client.connection->Send(answer);
  return {};
}

void MarkService::End(Client& client, const kvmwire::EndComputing& end) { client.domain->marks().End(client.id, end.mark()); }

void MarkService::Leave(const Client& client) { client.domain->marks().EndAllOf(client.id); }

}  // namespace kvm::daemon
