// ClockEviction: chooses the entry that leaves when the index is full. EntryTable evicts it.
//
// A hand goes round the slots and looks at a bounded number of them for each choice; among those it
// prefers the best standing. Of these, those published in the earlier half of the time are old, and
// the deepest of the old goes: the tail of a prefix is of no use without its head, the head is
// without its tail, and of a conversation that grows the head is the oldest.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "daemon/registry/block_index_writer.h"

namespace kvm::daemon {

// Best victims first.
enum class Standing : std::uint8_t {
  kStale,       // not usable any more
  kGone,        // of an owner that has gone
  kPreferred,   // of an owner who has more than its share; the publisher's own if it is one
  kAcceptable,  // of another owner who has more than its share
  kLastResort,  // the publisher's own, though it has less than its share
  kProtected,   // of an owner who has less than its share, or held by a lease
};

class ClockEviction {
 public:
  using Judge = std::function<Standing(const IndexEntry&)>;

  // `best`: nothing but what is stale has a better standing, so a few of these are enough to choose
  // from. kNoSlot: nothing near the hand may go.
  std::uint64_t ChooseVictim(const BlockIndexWriter& index, Standing best, const Judge& judge);

 private:
  struct Candidate {
    std::uint64_t slot = kNoSlot;
    std::uint32_t published_s = 0, depth = 0;
  };

  std::vector<Candidate> candidates_;  // all of one standing
  std::uint64_t hand_ = 0;
};

}  // namespace kvm::daemon
