// Slow, obvious models of the eviction policies, by key.
#pragma once

#include <algorithm>
#include <deque>
#include <functional>
#include <list>
#include <optional>

#include "daemon/policy/eviction_policy.h"

namespace kvm::test {

using MayLeave = std::function<bool(policy::Key)>;

// Newest first.
struct SlowLru {
  std::list<policy::Key> keys;

  void Use(policy::Key key) {
    keys.remove(key);
    keys.push_front(key);
  }
  void Erase(policy::Key key) { keys.remove(key); }
  policy::Key Victim() const { return keys.back(); }
  std::optional<policy::Key> VictimAmong(const MayLeave& may_leave) const {
    const auto found = std::find_if(keys.rbegin(), keys.rend(), may_leave);
    return found == keys.rend() ? std::nullopt : std::optional(*found);
  }
};

struct SlowS3Fifo {
  struct Entry {
    policy::Key key;
    int uses;
  };
  std::size_t capacity;
  std::deque<Entry> small = {}, main = {};  // newest first
  std::deque<policy::Key> ghosts = {};

  void Hit(policy::Key key) {
    for (std::deque<Entry>* queue : {&small, &main}) {
      for (Entry& entry : *queue) {
        if (entry.key == key) entry.uses = std::min(3, entry.uses + 1);
      }
    }
  }
  void Insert(policy::Key key) {
    const auto ghost = std::find(ghosts.begin(), ghosts.end(), key);
    (ghost != ghosts.end() ? main : small).push_front({key, 0});
    if (ghost != ghosts.end()) ghosts.erase(ghost);
  }
  // The block was erased without an eviction.
  void Erase(policy::Key key) {
    for (std::deque<Entry>* queue : {&small, &main}) {
      queue->erase(std::remove_if(queue->begin(), queue->end(), [&](const Entry& entry) { return entry.key == key; }), queue->end());
    }
  }

  // Used blocks behind the victim go to the front of the main queue.
  policy::Key Victim() {
    if (small.size() >= std::max<std::size_t>(1, capacity / 10) || main.empty()) {
      for (; !small.empty(); small.pop_back()) {
        if (small.back().uses == 0) return small.back().key;
        main.push_front({small.back().key, 0});
      }
    }
    for (; main.back().uses > 0; main.pop_back()) main.push_front({main.back().key, main.back().uses - 1});
    return main.back().key;
  }
  // The victim if it may be evicted; else the first unused block that may, in the small queue and
  // then in the main one; else the first block that may.
  std::optional<policy::Key> VictimAmong(const MayLeave& may_leave) {
    if (const policy::Key first = Victim(); may_leave(first)) return first;
    std::deque<Entry> all = main;
    all.insert(all.end(), small.begin(), small.end());
    for (const int most_uses : {0, 3}) {
      const auto found =
          std::find_if(all.rbegin(), all.rend(), [&](const Entry& entry) { return entry.uses <= most_uses && may_leave(entry.key); });
      if (found != all.rend()) return found->key;
    }
    return std::nullopt;
  }
  void Evict(policy::Key key) {
    if (std::any_of(small.begin(), small.end(), [&](const Entry& entry) { return entry.key == key; })) {
      ghosts.erase(std::remove(ghosts.begin(), ghosts.end(), key), ghosts.end());
      ghosts.push_front(key);
      if (ghosts.size() > 4 * capacity) ghosts.pop_back();
    }
    Erase(key);
  }
};

}  // namespace kvm::test
