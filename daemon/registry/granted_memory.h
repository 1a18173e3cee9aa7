// GrantedMemory: the memory that kvmd has made for each user and that a process may still write, by
// inode.
//
// A client that unregisters a region may keep the memory's descriptor, or pass it on, so neither
// the end of a region nor that of a connection says that the memory is free. The kernel does: it
// refuses a lease on a read-only descriptor (F_SETLEASE) while a file is open for writing or mapped
// through such a descriptor. Importers' read-only mappings do not count.
//
// OrphanService adds what it grants, OffloadService slabs that a client may write; Broker looks at
// them at every tick. It owns a read-only descriptor of each file that has no region, and counts it
// as its user's (DescriptorQuota). While a file has a region, that region has such descriptors.
// Single-threaded.
#pragma once

#include <cstdint>
#include <map>

#include "daemon/registry/descriptor_quota.h"
#include "daemon/registry/region.h"
#include "daemon/system/config.h"
#include "kvm/error.h"
#include "proto/base/inode.h"
#include "proto/base/peer_fd.h"

namespace kvm::daemon {

class GrantedMemory {
 public:
  // All outlive it. `closer`, if any, closes the descriptors.
  GrantedMemory(const Config& config, DescriptorQuota& descriptors, DescriptorCloser* closer);
  GrantedMemory(const GrantedMemory&) = delete;
  GrantedMemory& operator=(const GrantedMemory&) = delete;
  ~GrantedMemory();

  // Whether a user may have so many more bytes. kResourceExhausted, user and option named.
  [[nodiscard]] Status Check(std::uint32_t uid, std::uint64_t bytes);
  // `fd`: of memory that no process else has yet. kSystem: it can't be watched.
  [[nodiscard]] Status Add(std::uint32_t uid, int fd, std::uint64_t bytes);
  // A slab of the host cache that a client of the user's may write. While it is a slab it counts
  // there, and from then on here.
  void AddSlab(std::uint32_t uid, const Region& slab);
  // The region has the descriptors from now on; of one of an earlier kvmd, the files are added.
  void Registered(const Region& region);
  // The region is destroyed: its read-only descriptors are taken over for as long as a process may
  // write the memory.
  void Freed(Region& region);
  // Looks at the next `most` of the files that have no region.
  void Look(std::size_t most);

  std::uint64_t watched() const noexcept;  // files without a region
  std::uint64_t BytesOf(std::uint32_t uid) const;
  // Of closed slabs among these
  std::uint64_t SlabBytesOf(std::uint32_t uid) const;

 private:
  struct Grant {
    std::uint32_t uid = 0;
    std::uint64_t bytes = 0;
    bool slab = false;
    bool counted = false;
    PeerFd watch;  // not open while a region has the file
  };
  struct Use {
    std::uint64_t bytes = 0, slab_bytes = 0;
  };
  using Grants = std::map<FileId, Grant>;

  void Count(Grant& grant, bool counted);
  void Watch(Grant& grant, PeerFd read_only);
  bool DropIfGone(Grants::iterator& grant);

  const std::uint64_t max_per_user_;
  DescriptorQuota& descriptors_;
  DescriptorCloser* const closer_;
  Grants grants_;
  std::map<std::uint32_t, Use> users_;
  FileId look_hand_{};
};

}  // namespace kvm::daemon
