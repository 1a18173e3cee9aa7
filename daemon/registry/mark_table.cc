#include "daemon/registry/mark_table.h"

#include <algorithm>

#include "daemon/registry/quota_error.h"

namespace kvm::daemon {
namespace {

constexpr std::uint64_t kNsPerMs = 1'000'000;
constexpr WorkUnits kMarkUnits = 6;  // a bucket, and a few steps of the trees

template <class Key>
void CountDown(std::map<Key, std::uint32_t>& counts, const Key& key) {
  const auto count = counts.find(key);
  if (--count->second == 0) counts.erase(count);
}

template <class Key>
std::uint32_t CountOf(const std::map<Key, std::uint32_t>& counts, const Key& key) {
  const auto count = counts.find(key);
  return count == counts.end() ? 0 : count->second;
}

}  // namespace

MarkTable::MarkTable(const Config& config, RegistrySegment& segment)
    : config_(config), segment_(segment), owners_(segment.header().mark_buckets * layout::kMarksPerBucket) {}

MarkTable::Marked MarkTable::Mark(ClientId client, std::uint32_t uid, std::uint64_t id, std::span<const BlockKey> keys,
                                  std::uint64_t now_ns, std::uint32_t ttl_ms) {
  Marked out;
  const MarkId mark{client, id};
  const std::uint64_t ttl = std::min<std::uint64_t>(ttl_ms, std::uint64_t{config_.max_mark_ttl_s} * 1000);
  const auto [held, is_new] = marks_.try_emplace(mark);
  if (!is_new) by_expiry_.erase({held->second.expires_ns, mark});
  held->second.uid = uid;
  held->second.expires_ns = now_ns + ttl * kNsPerMs;
  by_expiry_.emplace(held->second.expires_ns, mark);
  for (const BlockKey& key : keys) {
    Spend(kMarkUnits);
    const Place place = PlaceFor(key, mark, now_ns);
    if (place.state == Place::kTaken) {
      ++out.others;
      continue;
    }
    if (place.state != Place::kOwn) {
      out.reason = FullFor(client, uid);
      if (!out.reason.empty()) break;
      if (place.state == Place::kNone) {
        out.reason = "marks: no room beside others in the registry's table";
        continue;
      }
      owners_[place.row] = mark;
      held->second.rows.push_back(place.row);
      ++of_client_[client];
      ++of_user_[uid];
      ++live_;
    }
    segment_.marks()[place.row].Write({key.lo, key.hi, client, now_ns, held->second.expires_ns});
    ++out.marked;
  }
  if (held->second.rows.empty()) EndHeld(held);
  segment_.header().live_marks.store(live_, std::memory_order_release);
  return out;
}

MarkTable::Place MarkTable::PlaceFor(const BlockKey& key, const MarkId& id, std::uint64_t now_ns) {
  const std::uint64_t buckets = segment_.header().mark_buckets;
  const auto first = static_cast<std::uint32_t>(layout::MarkBucket(key, buckets) * layout::kMarksPerBucket);
  Place place;
  for (std::uint32_t row = first; row < first + layout::kMarksPerBucket; ++row) {
    layout::MarkInfo info{};
    const bool used = owners_[row] != MarkId{} && segment_.marks()[row].Read(info);
    if (used && info.key_lo == key.lo && info.key_hi == key.hi) {
      if (owners_[row] == id) return {row, Place::kOwn};
      if (now_ns < info.expires_ns) return {row, Place::kTaken};
      // Another client's, which has expired: its time ends now, for all of its keys.
      EndHeld(marks_.find(owners_[row]));
      place = {row, Place::kFree};
    } else if (!used && place.state == Place::kNone) {
      place = {row, Place::kFree};
    }
  }
  return place;
}

std::string MarkTable::FullFor(ClientId client, std::uint32_t uid) const {
  if (CountOf(of_client_, client) >= config_.max_marked_keys_per_client)
    return Exhausted("marks: too many keys of one client", config_.max_marked_keys_per_client, "--max-marked-keys-per-client").message;
  const std::uint32_t most = MarkedKeysPerUser(config_, static_cast<std::uint32_t>(owners_.size()));
  if (CountOf(of_user_, uid) >= most)
    return Exhausted("marks: too many keys of user " + std::to_string(uid), most, "--max-marked-keys-per-user").message;
  return "";
}

void MarkTable::End(ClientId client, std::uint64_t id) {
  if (const auto mark = marks_.find({client, id}); mark != marks_.end()) EndHeld(mark);
}

void MarkTable::EndAllOf(ClientId client) {
  for (auto mark = marks_.lower_bound({client, 0}); mark != marks_.end() && mark->first.first == client;) EndHeld(mark++);
}

void MarkTable::Expire(std::uint64_t now_ns, const WorkBudget& budget) {
  while (!by_expiry_.empty() && by_expiry_.begin()->first <= now_ns && !budget.used_up()) EndHeld(marks_.find(by_expiry_.begin()->second));
}

std::uint32_t MarkTable::OfClient(ClientId client) const { return CountOf(of_client_, client); }

void MarkTable::EndHeld(std::map<MarkId, Held>::iterator mark) {
  for (const std::uint32_t row : mark->second.rows) {
    Spend(kMarkUnits);
    segment_.marks()[row].Write({});
    owners_[row] = {};
    CountDown(of_client_, mark->first.first);
    CountDown(of_user_, mark->second.uid);
    --live_;
  }
  by_expiry_.erase({mark->second.expires_ns, mark->first});
  marks_.erase(mark);
  segment_.header().live_marks.store(live_, std::memory_order_release);
}

}  // namespace kvm::daemon
