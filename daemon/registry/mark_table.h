// MarkTable: the keys of a domain whose blocks a client says that it is computing.
//
// MarkService calls it for clients' messages, Broker at each tick and at a client's end. It owns
// the rows of marks in the registry, of which it is the only writer. A mark is a hint for other
// workers, which may wait for the block: kvmd itself does nothing with it. So a key without room
// for a mark stays unmarked, and no client is worse off than without marks.
//
// Invariants:
//   - A key has one mark: that of the client that came first, until it ends or expires.
//   - A row is in the list of one mark, and is freed when that mark ends: with its client, at its
//     time, or on request.
//   - A client has --max-marked-keys-per-client keys at most, a user --max-marked-keys-per-user.
// Single-threaded.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "daemon/registry/region.h"
#include "daemon/registry/registry_segment.h"
#include "daemon/system/config.h"
#include "daemon/system/work_meter.h"
#include "kvm/block_key.h"

namespace kvm::daemon {

class MarkTable {
 public:
  struct Marked {
    std::uint32_t marked = 0;  // keys that have this mark now
    std::uint32_t others = 0;  // keys that have another one
    std::string reason;        // why the rest has none; empty: there is no rest
  };

  // Both outlive the table.
  MarkTable(const Config& config, RegistrySegment& segment);

  // Gives the keys the client's mark `id`, a new one or one that goes on, from `now_ns` on for
  // `ttl_ms`, at most --max-mark-ttl-s. Keys that the mark has already are marked anew. Work: a few
  // steps for each key.
  Marked Mark(ClientId client, std::uint32_t uid, std::uint64_t id, std::span<const BlockKey> keys, std::uint64_t now_ns,
              std::uint32_t ttl_ms);
  // Nothing happens if the client has no such mark.
  void End(ClientId client, std::uint64_t id);
  void EndAllOf(ClientId client);
  // Ends marks whose time is over, until the budget is used up; readers ignore them anyway.
  void Expire(std::uint64_t now_ns, const WorkBudget& budget);

  std::uint32_t size() const noexcept { return live_; }  // keys
  std::uint32_t OfClient(ClientId client) const;         // keys

 private:
  using MarkId = std::pair<ClientId, std::uint64_t>;
  struct Held {
    std::uint32_t uid = 0;
    std::uint64_t expires_ns = 0;
    std::vector<std::uint32_t> rows;
  };
  struct Place {
    std::uint32_t row = 0;
    enum { kFree, kOwn, kTaken, kNone } state = kNone;
  };

  Place PlaceFor(const BlockKey& key, const MarkId& id, std::uint64_t now_ns);
  std::string FullFor(ClientId client, std::uint32_t uid) const;
  void EndHeld(std::map<MarkId, Held>::iterator mark);

  const Config& config_;
  RegistrySegment& segment_;
  std::map<MarkId, Held> marks_;
  std::set<std::pair<std::uint64_t, MarkId>> by_expiry_;
  std::vector<MarkId> owners_;  // of the rows; {0, 0}: free
  std::map<ClientId, std::uint32_t> of_client_;
  std::map<std::uint32_t, std::uint32_t> of_user_;
  std::uint32_t live_ = 0;
};

}  // namespace kvm::daemon
