#include "client/mesh/membership/etcd_members.h"

#include <algorithm>

#include "client/mesh/log/event_log.h"
#include "proto/mesh/mesh_identity.h"

namespace kvm::mesh {
namespace {

constexpr std::size_t kMaxKeyBytes = 1024, kMaxSkipped = 256;

}  // namespace

EtcdMembers::EtcdMembers(const std::string& prefix, std::string domain, const std::string& own_node, bool any_machine)
    : domain_(std::move(domain)),
      directory_(EtcdDirectory(prefix, domain_)),
      own_key_(EtcdKey(prefix, domain_, own_node)),
      any_machine_(any_machine) {}

bool EtcdMembers::Replace(const std::vector<EtcdPair>& pairs, bool more, Time now) {
  bool changed = false;
  std::set<std::string_view> present;
  for (const EtcdPair& pair : pairs) {
    present.insert(pair.key);
    changed = Put(pair) || changed;
  }
  if (more && !left_out_) LogEvent(LogLevel::kWarn, "etcd_members_left_out", {{"most", kMaxMembers}});
  left_out_ = more;
  for (auto at = known_.begin(); at != known_.end();) {
    const auto next = std::next(at);
    if (!present.contains(at->first)) changed = Remove(at, now) || changed;
    at = next;
  }
  return changed;
}

bool EtcdMembers::Apply(const EtcdPair& pair, Time now) {
  if (!pair.deleted) return Put(pair);
  skipped_.erase(pair.key);
  const auto found = known_.find(pair.key);
  return found != known_.end() && Remove(found, now);
}

bool EtcdMembers::Put(const EtcdPair& pair) {
  if (pair.key == own_key_) return false;
  const Result<EtcdEntry> entry = ParseEtcdEntry(pair.value, any_machine_);
  if (!entry) {
    Skip(pair, entry.error().message);
    return false;
  }
  if (entry->domain != domain_ || pair.key != directory_ + IdentityNode(entry->member.node)) {
    Skip(pair, "the entry of another node or domain");
    return false;
  }
  const auto found = known_.find(pair.key);
  if (found == known_.end() && known_.size() >= kMaxMembers) {
    if (!left_out_) LogEvent(LogLevel::kWarn, "etcd_members_left_out", {{"most", kMaxMembers}});
    left_out_ = true;
    return false;
  }
  skipped_.erase(pair.key);
  Known& known = found == known_.end() ? known_[pair.key] : found->second;
  known.leaves.reset();
  if (known.member == entry->member) return false;
  known.member = entry->member;
  return true;
}

bool EtcdMembers::Remove(std::map<std::string, Known>::iterator at, Time now) {
  if (now < keep_until_) {
    if (!at->second.leaves) at->second.leaves = keep_until_;
    return false;
  }
  known_.erase(at);
  return true;
}

void EtcdMembers::KeepUntil(Time time) noexcept {
  keep_until_ = std::max(keep_until_, time);
  for (auto& [key, known] : known_)
    if (known.leaves) known.leaves = std::max(*known.leaves, keep_until_);
}

bool EtcdMembers::Depart(Time now) {
  return std::erase_if(known_, [&](const auto& each) { return each.second.leaves && *each.second.leaves <= now; }) > 0;
}

std::optional<EtcdMembers::Time> EtcdMembers::NextDeparture() const noexcept {
  std::optional<Time> out;
  for (const auto& [key, known] : known_)
    if (known.leaves && (!out || *known.leaves < *out)) out = known.leaves;
  return out;
}

void EtcdMembers::Skip(const EtcdPair& pair, const std::string& reason) {
  // Once for each key, and a bounded number of keys: any client of etcd may write any number.
  if (pair.key.size() > kMaxKeyBytes || skipped_.size() >= kMaxSkipped || !skipped_.insert(pair.key).second) return;
  LogEvent(LogLevel::kWarn, "etcd_entry_skipped", {{"key", pair.key}, {"reason", reason}});
}

std::vector<Member> EtcdMembers::list() const {
  std::vector<Member> out;
  out.reserve(known_.size());
  for (const auto& [key, known] : known_) out.push_back(known.member);
  return out;
}

std::size_t EtcdMembers::leaving() const noexcept {
  return static_cast<std::size_t>(
      std::count_if(known_.begin(), known_.end(), [](const auto& each) { return each.second.leaves.has_value(); }));
}

}  // namespace kvm::mesh
