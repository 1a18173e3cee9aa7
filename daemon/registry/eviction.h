// ClockEviction: chooses the entry that leaves when the index is full. EntryTable evicts it.
//
// A clock hand goes round the slots and looks at a bounded number of them for each choice. Among
// those it prefers the best standing, then the oldest publication, then the deepest block, since
// the end of a prefix is useless without its beginning and the beginning is useful without the end.
#pragma once

#include <cstdint>
#include <functional>

#include "daemon/registry/block_index_writer.h"

namespace kvm::daemon {

// Best victims first.
enum class Standing : std::uint8_t {
  kStale,       // its block has been rewritten
  kPreferred,   // of an owner who has more than its share; the publisher's own if it is one
  kAcceptable,  // of another owner who has more than its share
  kLastResort,  // the publisher's own, though it has less than its share
  kProtected,   // of an owner who has less than its share, or held by a lease
};

class ClockEviction {
 public:
  using Judge = std::function<Standing(const IndexEntry&)>;

  // kNoSlot: no entry among those that were looked at may be evicted.
  std::uint64_t ChooseVictim(const BlockIndexWriter& index, const Judge& judge);

 private:
  std::uint64_t hand_ = 0;
};

}  // namespace kvm::daemon
