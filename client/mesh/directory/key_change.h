// KeyChange: a key that a node, or its disk, has from now on, or has no more.
#pragma once

#include "kvm/block_key.h"

namespace kvm::mesh {

struct KeyChange {
  BlockKey key;
  bool here = false;
};

}  // namespace kvm::mesh
