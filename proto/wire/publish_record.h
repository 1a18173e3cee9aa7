// One published block as it travels in kvmwire::Publish::records: packed, little endian.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kvm/block_key.h"

namespace kvm {

struct PublishRecord {
  BlockKey key;
  std::uint64_t parent_lo = 0;   // BlockKey::lo of the parent key
  std::uint64_t generation = 0;  // even
  std::uint32_t block = 0;
  std::uint32_t depth = 0;  // blocks before this one in its prefix
};
static_assert(sizeof(PublishRecord) == 40 && std::is_trivially_copyable_v<PublishRecord>);

}  // namespace kvm
