// kvctl evict: drops blocks from the host cache.
#include <algorithm>
#include <iostream>
#include <set>

#include "client/kvctl/cli/exit_codes.h"
#include "client/kvctl/cli/json.h"
#include "client/kvctl/cli/observer.h"
#include "client/kvctl/cli/text.h"
#include "client/kvctl/views/descendants.h"
#include "client/kvctl/views/views.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::ctl {
namespace {

constexpr std::size_t kLeastDigits = 6;  // of a fingerprint

std::string HexOf(const std::string& bytes) {
  Fingerprint fingerprint;
  if (bytes.size() != fingerprint.bytes.size()) return {};
  std::copy(bytes.begin(), bytes.end(), fingerprint.bytes.begin());
  return fingerprint.ToHex();
}

// The fingerprints of the models with blocks in the host cache that `text` names, over all domains
// that kvmd shows this user.
Result<std::set<std::string>> SelectFingerprints(Observer& observer, const std::string& text) {
  kvmwire::StatusQuery query;
  query.set_memory(true);
  const Result<kvmwire::StatusReply> status = observer.Query(query);
  if (!status) return status.error();
  std::set<std::string> selected, known;
  for (const kvmwire::DomainStatus& domain : status->domains()) {
    for (const kvmwire::MemoryGroup& group : domain.memory()) {
      if (!group.host_cache()) continue;
      const std::string hex = HexOf(group.fingerprint());
      known.insert(Printable(group.model_id()) + " (" + hex.substr(0, 12) + ")");
      if (group.model_id() == text || (text.size() >= kLeastDigits && hex.starts_with(text))) selected.insert(group.fingerprint());
    }
  }
  if (!selected.empty()) return selected;
  const std::vector<std::string> names(known.begin(), known.end());
  return MakeError(Errc::kNotFound, "evict: the host cache has no blocks of model " + Printable(text) +
                                        (names.empty() ? "" : "; it has " + JoinWithCommas(names)));
}

// The block and all that descend from it, as far as the registry of this user's domain has them.
std::vector<BlockKey> WithDescendants(const RegistryView& registry, const BlockKey& key) {
  std::vector<BlockKey> keys{key};
  Ancestry ancestry(registry.index());
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < registry.index().slots(); ++slot) {
    if (registry.index().ReadSlot(slot, entry) && entry.key != key && ancestry.Descends(entry.key.lo, key.lo)) keys.push_back(entry.key);
  }
  std::sort(keys.begin() + 1, keys.end());
  keys.erase(std::unique(keys.begin() + 1, keys.end()), keys.end());
  return keys;
}

Status Ask(Observer& observer, const kvmwire::Evict& request, kvmwire::EvictReply& sum) {
  const Result<kvmwire::EvictReply> reply = observer.Evict(request);
  if (!reply) return reply.error();
  sum.set_blocks(sum.blocks() + reply->blocks());
  sum.set_bytes(sum.bytes() + reply->bytes());
  sum.set_leased(sum.leased() + reply->leased());
  sum.set_being_stored(sum.being_stored() + reply->being_stored());
  return {};
}

// One request for each model and each so many keys.
Result<kvmwire::EvictReply> Evict(Observer& observer, const EvictOptions& options) {
  std::set<std::string> fingerprints{""};
  if (!options.model.empty()) {
    Result<std::set<std::string>> selected = SelectFingerprints(observer, options.model);
    if (!selected) return selected.error();
    fingerprints = std::move(*selected);
  }
  std::vector<BlockKey> keys;
  if (!options.key.empty()) {
    const Result<BlockKey> key = BlockKey::FromHex(options.key);
    if (!key) return key.error();
    keys = WithDescendants(observer.registry(), *key);
  }
  kvmwire::EvictReply sum;
  for (const std::string& fingerprint : fingerprints) {
    kvmwire::Evict request;
    request.set_domain(options.domain);
    request.set_fingerprint(fingerprint);
    std::size_t next = 0;
    do {
      const std::size_t count = std::min(keys.size() - next, kMaxEvictKeys);
      request.set_keys(keys.data() + next, count * sizeof(BlockKey));
      next += count;
      if (Status asked = Ask(observer, request, sum); !asked) return asked.error();
    } while (next < keys.size());
  }
  return sum;
}

}  // namespace

int RunEvict(const CommonOptions& common, const EvictOptions& options) {
  if (options.model.empty() && options.key.empty() && !options.all)
    return Fail(MakeError(Errc::kInvalidArgument, "evict: say which blocks: --model, --key, or --all"));
  Result<Observer> observer = Observer::Connect(common.socket, common.timeout());
  if (!observer) return Fail(observer.error());
  const Result<kvmwire::EvictReply> reply = Evict(*observer, options);
  if (!reply) return Fail(reply.error());
  if (common.json) {
    PrintJson(
        {{"blocks", reply->blocks()}, {"bytes", reply->bytes()}, {"leased", reply->leased()}, {"being_stored", reply->being_stored()}});
    return kHealthy;
  }
  std::cout << HumanCount(reply->blocks()) << (reply->blocks() == 1 ? " block" : " blocks")
            << " dropped from the host cache: " << HumanBytes(reply->bytes()) << '\n';
  if (reply->leased() > 0) std::cout << HumanCount(reply->leased()) << " more stay, since leases cover them (kvctl leases)\n";
  if (reply->being_stored() > 0) std::cout << HumanCount(reply->being_stored()) << " more are being stored now, and stay\n";
  return kHealthy;
}

}  // namespace kvm::ctl
