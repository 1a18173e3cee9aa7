// What kvmd keeps of a registered region besides its row: descriptors, generations, who has it mapped.
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
#include "proto/base/unique_fd.h"
#include "proto/shm/generation_table.h"
#include "proto/shm/layout.h"
#include "proto/shm/sealed_memory.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// What one client holds in a domain, over all its regions.
struct Account {
  std::uint32_t regions = 0;
  std::uint64_t blocks = 0;
  std::uint64_t fds = 0;
  std::uint64_t entries = 0;
  bool own = false;       // kvmd's
  std::uint32_t uid = 0;  // of the client; regions of one that has gone stay that user's
};

inline constexpr ClientId kNoClient = 0;  // owns what kvmd itself keeps

using SteadyTime = std::chrono::steady_clock::time_point;

// Who fills a region that kvmd keeps.
class RegionFiller {
 public:
  virtual ~RegionFiller() = default;
  // The entry of `block` has left the index.
  virtual void EntryErased(std::uint32_t block) noexcept = 0;
  // Until as many Unpins, the block is not given up. False: it is not there.
  virtual bool Pin(std::uint32_t block) noexcept = 0;
  virtual void Unpin(std::uint32_t block) noexcept = 0;
  virtual bool Pinned(std::uint32_t block) const noexcept = 0;
  // Whether the mapping by which it writes the generation table has lost memory.
  virtual bool TableLost() const noexcept = 0;
};

// What becomes of a region, step by step:
//
//   kFree ── registered ──▶ kLive ── its owner has gone ──▶ kOrphan
//                           │   ◀── resumed, adopted ──────   │
//            unregistered,  │                                 │  expired, reclaimed,
//            or not kept    └──────────▶ kLeaving ◀───────────┘  or in the way
//                                           │
//                                           │  no entry is left, and no importer is waited for
//                                           ▼
//                                         kFree: the row is free for another
//
// kLive and kOrphan serve: their blocks can be imported. To a kLive region alone its owner may publish.
enum class RegionPhase : std::uint8_t { kFree, kLive, kOrphan, kLeaving };

// Whether the drawing has this step.
bool MayFollow(RegionPhase from, RegionPhase to) noexcept;

// Of a region whose owner's connection has ended.
struct Orphan {
  SteadyTime since;
  std::shared_ptr<WatchedProcess> process;  // the owner's
};

struct Region {
  RegionPhase phase() const noexcept { return phase_; }
  // A step of the drawing above; any other is a broken invariant of kvmd's own. `info` then says
  // what the row has to show: a kLeaving region is kWithdrawing while importers are asked to
  // acknowledge its end, and kFree where nobody is asked.
  void Enter(RegionPhase next) noexcept;

  kvmwire::RegionDescriptor descriptor;
  std::vector<UniqueFd> fds;        // generation table, then segments that have one; as the owner has them
  std::vector<UniqueFd> read_only;  // [fds]: of granted memory; none where the owner's can't be mapped writable
  std::vector<FileId> files;        // of shared memory among `fds`: generation table, then host segments
  MappedMemory generation_memory;
  GenerationReader generations;
  layout::RegionInfo info{};  // what the row says
  std::uint32_t row = 0;
  ClientId owner = 0;                // of an orphan: its last one
  std::optional<Orphan> orphan;      // set in phase kOrphan and in no other
  std::uint64_t owner_instance = 0;  // Hello::instance of the owner, or of the last one

  RegionFiller* filler = nullptr;  // of a live slab of the host cache
  // Of an orphan: blocks that leases hold, and how many leases each.
  std::unordered_map<std::uint32_t, std::uint32_t> pinned;

  Account* account = nullptr;  // the owner's; lives as long as the region

  SlotMap slots;  // index slot of each block's entry
  std::uint64_t entries = 0;
  std::uint32_t reap_from = 0;         // when leaving: blocks below have no entry any more
  std::uint32_t persisted_user = 0;    // for whom it is kept
  std::string persisted_id;            // with the service manager; empty: not kept
  std::uint32_t persisted_serial = 0;  // of the manifest that is kept; 0: none
  std::vector<std::string> persisted_files;
  bool asks_importers = false;      // when leaving: for an acknowledgement
  std::set<ClientId> announced_to;  // who may have it mapped
  std::set<ClientId> waiting_for;   // whose acknowledgement the unregistering owner waits for

  bool live() const noexcept { return phase_ == RegionPhase::kLive; }
  // Live, or an orphan: its blocks can be imported.
  bool serving() const noexcept { return live() || phase_ == RegionPhase::kOrphan; }
  // Names the generation table for as long as it exists, whichever process owns the region.
  FileId identity() const noexcept { return files[0]; }
  // False: somebody who may write its memory has punched a hole in it, or it can't be read any more. Its blocks are not
  // to be believed then, and the region is to go. A system call for each of its files, or for the table's only.
  bool whole() const noexcept;
  bool table_whole() const noexcept;
  // Descriptors for importers, in the order of `fds`.
  int importer_fd(std::size_t i) const noexcept { return read_only[i] ? read_only[i].get() : fds[i].get(); }
  // Whether the memory can outlive its owner, and whether a next owner can go on in it.
  bool outlives_owner() const noexcept;
  bool adoptable() const noexcept;
  std::uint64_t segment_bytes() const noexcept;  // of all
  std::size_t descriptors() const noexcept;      // that kvmd keeps

  // Until as many Unpins, the block's entry makes room for nobody and its memory is not given up to make room. False: it
  // has just gone.
  bool Pin(std::uint32_t block);
  void Unpin(std::uint32_t block) noexcept;
  bool Pinned(std::uint32_t block) const noexcept { return filler != nullptr ? filler->Pinned(block) : pinned.contains(block); }

 private:
  RegionPhase phase_ = RegionPhase::kFree;
};

// Whether both hold blocks of the same shard of their models.
bool SameShard(const Region& a, const Region& b) noexcept;

// kModelMismatch, kBadGeometry: the region is not what the adopter expects; the message names the field.
[[nodiscard]] Status CheckExpected(const Region& region, const kvmwire::RegionDescriptor& expected);

// Checks everything a client says about a region, maps its generation table and takes its descriptors.
// `spec`: of the model its fingerprint names. The message of an error names the field. Not checked: whose memory it is
// (daemon/broker/grants.h), and whether another region has it.
// kInvalidArgument, kBadGeometry, kPermissionDenied (seals, huge pages), kModelMismatch (shard sizes), kUnsupported,
// kResourceExhausted.
[[nodiscard]] Result<std::unique_ptr<Region>> CheckRegion(kvmwire::RegionDescriptor descriptor, std::vector<UniqueFd> fds,
                                                          const ModelSpec& spec);

}  // namespace kvm::daemon
