#include "daemon/broker/services/evict_service.h"

#include <cstring>
#include <memory>
#include <utility>

#include "daemon/broker/services/admins.h"
#include "daemon/system/log.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

constexpr std::size_t kFingerprintBytes = sizeof(Fingerprint::bytes);

// Of so many bytes.
std::string FingerprintHex(const std::string& bytes) {
  Fingerprint fingerprint;
  std::memcpy(fingerprint.bytes.data(), bytes.data(), kFingerprintBytes);
  return fingerprint.ToHex();
}

// One request, from slice to slice. Its end is logged in any case: a client that leaves meanwhile
// has dropped blocks, too.
struct Eviction {
  Eviction() = default;
  Eviction(const Eviction&) = delete;
  Eviction& operator=(const Eviction&) = delete;
  ~Eviction() {
    if (!ended) End(false);
  }

  // What has been done in the domain that was worked on.
  void Add() {
    const HostCache::Evicting done = std::exchange(progress, {});
    reply.set_blocks(reply.blocks() + done.blocks);
    reply.set_bytes(reply.bytes() + done.bytes);
    reply.set_leased(reply.leased() + done.leased);
    reply.set_being_stored(reply.being_stored() + done.being_stored);
  }

  void End(bool complete) {
    Add();
    ended = true;
    LogLimited(LogLevel::kInfo, "host_cache_evicted",
               {{"client", client},
                {"uid", uid},
                {"complete", complete ? "yes" : "no"},
                {"blocks", reply.blocks()},
                {"bytes", reply.bytes()},
                {"leased", reply.leased()},
                {"being_stored", reply.being_stored()}});
  }

  ClientId client = 0;
  std::uint32_t uid = 0;
  // The last one is worked on; a domain may go between two slices.
  std::vector<std::string> domains;
  std::string fingerprint;
  std::vector<BlockKey> keys;
  HostCache::Evicting progress;
  kvmwire::EvictReply reply;
  bool ended = false;
};

}  // namespace

Result<std::vector<std::string>> EvictService::DomainsFor(const Client& client, const std::string& wanted) const {
  const std::uint32_t uid = client.credentials.uid;
  const bool everywhere = AdministersAll(config_, uid);
  if (!Administers(config_, *client.domain, uid))
    return MakeError(Errc::kPermissionDenied, "evict: only root, kvmd's user and admins may (--admins, admins of the domain)");
  std::vector<std::string> names;
  domains_.ForEach([&](const Domain& domain) {
    const bool may = everywhere || &domain == client.domain;
    if (may && (wanted.empty() || domain.name() == wanted)) names.push_back(domain.name());
  });
  if (names.empty())
    return MakeError(Errc::kNotFound, "evict: there is no domain " + wanted.substr(0, kMaxNameBytes) + " that this user administers");
  return names;
}

Status EvictService::Evict(Client& client, kvmwire::ClientMessage message) {
  const kvmwire::Evict& evict = message.evict();
  if (evict.keys().size() % sizeof(BlockKey) != 0) return MakeError(Errc::kProtocol, "evict: keys are cut off");
  if (evict.keys().size() / sizeof(BlockKey) > kMaxEvictKeys) return MakeError(Errc::kProtocol, "evict: too many keys in one message");
  const auto refuse = [&](const Error& error) {
    client.ReplyError(message.request_id(), error);
    return Status();
  };
  HostCache* const host_cache = offload_.host_cache();
  if (host_cache == nullptr) return refuse(MakeError(Errc::kUnsupported, "this kvmd has no host cache (--host-cache)"));
  if (!evict.fingerprint().empty() && evict.fingerprint().size() != kFingerprintBytes)
    return refuse(MakeError(Errc::kInvalidArgument, "evict: the fingerprint is not 32 bytes"));
  Result<std::vector<std::string>> names = DomainsFor(client, evict.domain());
  if (!names) return refuse(names.error());
  const auto request = std::make_shared<Eviction>();
  request->client = client.id;
  request->uid = client.credentials.uid;
  request->domains = std::move(*names);
  request->fingerprint = evict.fingerprint();
  request->keys.resize(evict.keys().size() / sizeof(BlockKey));
  if (!request->keys.empty()) std::memcpy(request->keys.data(), evict.keys().data(), evict.keys().size());
  LogLimited(LogLevel::kInfo, "host_cache_evict_asked",
             {{"client", client.id},
              {"pid", client.credentials.pid},
              {"uid", client.credentials.uid},
              {"domain", evict.domain().empty() ? "all" : evict.domain()},
              {"model", request->fingerprint.empty() ? "all" : FingerprintHex(request->fingerprint)},
              {"keys", request->keys.empty() ? std::string("all") : std::to_string(request->keys.size())}});
  client.Work([this, host_cache, request, id = message.request_id()](Client& its, const WorkBudget& budget) {
    for (; !request->domains.empty(); request->domains.pop_back(), request->Add()) {
      Domain* const domain = domains_.Find(request->domains.back());
      if (domain == nullptr) continue;
      if (!host_cache->Evict({*domain, request->fingerprint}, request->keys, request->progress, budget)) return false;
    }
    request->End(true);
    kvmwire::ServerMessage answer;
    answer.set_request_id(id);
    *answer.mutable_evict_reply() = request->reply;
    its.connection->Send(answer);
    return true;
  });
  return {};
}

}  // namespace kvm::daemon
