// Region: what kvmd keeps of a registered region besides its row, such as its descriptors, its
// generation table, and the importers that have it mapped.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "daemon/registry/model_table.h"
#include "daemon/registry/slot_map.h"
#include "daemon/system/process_info.h"
#include "kvm/error.h"
#include "kvm/geometry.h"
#include "kvm/model_spec.h"
#include "proto/base/inode.h"
#include "proto/base/peer_fd.h"
#include "proto/shm/generation_table.h"
#include "proto/shm/layout.h"
#include "proto/shm/sealed_memory.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// What all clients of one user hold in a domain.
struct UserAccount {
  std::uint32_t regions = 0, clients = 0;
  std::uint64_t blocks = 0, entries = 0;
};

// What one client holds in a domain, over all its regions.
struct Account {
  void AddEntry() noexcept {
    ++entries;
    if (user != nullptr) ++user->entries;
  }
  void RemoveEntry() noexcept {
    --entries;
    if (user != nullptr) --user->entries;
  }

  UserAccount* user = nullptr;  // null: kvmd's own; lives as long as the account
  std::uint32_t regions = 0;
  std::uint64_t blocks = 0;
  std::uint64_t fds = 0;
  std::uint64_t entries = 0;
  bool own = false;       // kvmd's
  std::uint32_t uid = 0;  // of the client; regions of one that has gone stay that user's
};

inline constexpr ClientId kNoClient = 0;  // the owner of regions that kvmd itself keeps

using SteadyTime = std::chrono::steady_clock::time_point;

// The part of kvmd that fills a region of kvmd's own: a slab of the host cache.
class RegionFiller {
 public:
  virtual ~RegionFiller() = default;
  // Called when the entry of `block` has left the index.
  virtual void EntryErased(std::uint32_t block) noexcept = 0;
  // Keeps the block from being evicted, until Unpin has been called as often as Pin. False if the
  // block is not there.
  virtual bool Pin(std::uint32_t block) noexcept = 0;
  virtual void Unpin(std::uint32_t block) noexcept = 0;
  virtual bool Pinned(std::uint32_t block) const noexcept = 0;
  // Whether the mapping through which it writes the generation table has lost memory.
  virtual bool TableLost() const noexcept = 0;
};

// The phases of a region:
//
//   kFree ── registered ──▶ kLive ── its owner has gone ──▶ kOrphan
//                           │   ◀── resumed, adopted ──────   │
//            unregistered,  │                                 │  expired, reclaimed,
//            or not kept    └──────────▶ kLeaving ◀───────────┘  or in the way
//                                           │
//                                           │  no entry is left, and no importer is waited for,
//                                           │  or still to be told
//                                           ▼
//                                         kFree: the row is free for another
//
// Regions in phase kLive and kOrphan serve: their blocks can be imported. Only to a kLive region
// can its owner publish.
enum class RegionPhase : std::uint8_t { kFree, kLive, kOrphan, kLeaving };

// Whether the drawing above has this step.
bool MayFollow(RegionPhase from, RegionPhase to) noexcept;

// What kvmd knows of a region whose owner's connection has ended.
struct Orphan {
  SteadyTime since;
  std::shared_ptr<WatchedProcess> process;  // the owner's
};

struct Region {
  RegionPhase phase() const noexcept { return phase_; }
  // Takes a step of the drawing above; any other step is a bug of kvmd. Sets `info` to what the row
  // has to show: for a kLeaving region, kWithdrawing while importers are asked to acknowledge its
  // end, and kFree if no importer is asked.
  void Enter(RegionPhase next) noexcept;

  kvmwire::RegionDescriptor descriptor;
  // The generation table's, then those of segments that have one; with the owner's access rights
  std::vector<PeerFd> fds;
  // For each of `fds`, a read-only descriptor if the memory is granted; not open if `fds` can't be
  // mapped writable
  std::vector<PeerFd> read_only;
  // The shared memory among `fds`: generation table, then host segments
  std::vector<FileId> files;
  MappedMemory generation_memory;
  GenerationReader generations;
  layout::RegionInfo info{};  // what the row says
  std::uint32_t row = 0;
  ClientId owner = 0;                // for an orphan: its last owner
  std::optional<Orphan> orphan;      // set in phase kOrphan and in no other
  std::uint64_t owner_instance = 0;  // Hello::instance of the owner, or of the last one

  RegionFiller* filler = nullptr;  // set for a live slab of the host cache
  // For an orphan: the blocks that leases cover, each with the number of its leases.
  std::unordered_map<std::uint32_t, std::uint32_t> pinned;

  Account* account = nullptr;  // the owner's; lives as long as the region

  SlotMap slots;  // index slot of each block's entry
  std::uint64_t entries = 0;
  std::uint32_t reap_from = 0;         // when leaving: blocks below have no entry any more
  std::uint32_t persisted_user = 0;    // for whom it is kept
  std::string persisted_id;            // with the service manager; empty: not kept
  std::uint32_t persisted_serial = 0;  // of the manifest that is kept; 0: none
  std::vector<std::string> persisted_files;
  bool asks_importers = false;      // when leaving: kvmd waits for their acknowledgement
  std::set<ClientId> announced_to;  // clients that may have it mapped
  // Clients whose acknowledgement the unregistering owner waits for
  std::set<ClientId> waiting_for;
  std::vector<ClientId> to_tell;  // when leaving: clients that are still to be told

  bool live() const noexcept { return phase_ == RegionPhase::kLive; }
  // Live, or an orphan: its blocks can be imported.
  bool serving() const noexcept { return live() || phase_ == RegionPhase::kOrphan; }
  // Names the generation table for as long as it exists, whichever process owns the region.
  FileId identity() const noexcept { return files[0]; }
  // False if a process that may write its memory has punched a hole in it, or if it can't be read
  // any more. Its blocks must not be used then, and the region has to be removed. whole() makes a
  // system call for each of its files, table_whole() one for the generation table.
  bool whole() const noexcept;
  bool table_whole() const noexcept;
  // Descriptors for importers, in the order of `fds`.
  int importer_fd(std::size_t i) const noexcept { return read_only[i] ? read_only[i].get() : fds[i].get(); }
  // Whether the memory can outlive its owner, and whether a next owner can write it.
  bool outlives_owner() const noexcept;
  bool adoptable() const noexcept;
  std::uint64_t segment_bytes() const noexcept;  // of all
  std::size_t descriptors() const noexcept;      // that kvmd keeps

  // Keeps the block's entry from being evicted and its memory from being freed to make room, until
  // Unpin has been called as often as Pin. False if the block has just gone.
  bool Pin(std::uint32_t block);
  void Unpin(std::uint32_t block) noexcept;
  bool Pinned(std::uint32_t block) const noexcept { return filler != nullptr ? filler->Pinned(block) : pinned.contains(block); }

 private:
  RegionPhase phase_ = RegionPhase::kFree;
};

// Whether both hold blocks of the same shard of their models.
bool SameShard(const Region& a, const Region& b) noexcept;

// kModelMismatch, kBadGeometry: the region is not what the adopter expects; the message names the
// field.
[[nodiscard]] Status CheckExpected(const Region& region, const kvmwire::RegionDescriptor& expected);

// Checks everything that a client says of a region, maps its generation table and takes its
// descriptors. `spec`: the model that its fingerprint names. The message of an error names the
// field. It does not check whether the memory was granted to this client
// (daemon/broker/services/grants.h), nor whether another region has it. kInvalidArgument,
// kBadGeometry, kPermissionDenied (seals, huge pages), kModelMismatch (shard sizes), kUnsupported,
// kResourceExhausted.
[[nodiscard]] Result<std::unique_ptr<Region>> CheckRegion(kvmwire::RegionDescriptor descriptor, std::vector<PeerFd> fds,
                                                          const ModelSpec& spec);

}  // namespace kvm::daemon
