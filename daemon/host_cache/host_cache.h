// The host cache: blocks that kvmd keeps in host memory for whoever asks, whatever becomes of those who computed them.
//
// It is cut into slabs (slab.h); a worker offers blocks, is granted slots of slabs that are its own to
// write, copies, and says that it has. kvmd copies nothing. host_cache.cc: offers, stores and uses; host_cache_memory.cc: where
// slabs come from and who gives one up; host_cache_restore.cc: a cache that an earlier kvmd filled.
//
// Invariants:
//   - A slot is granted to one writer at a time, and again only after that writer has answered for it or its process
//     has ended: a late copy can't land in somebody else's block.
//   - A slab is writable by one living process at most, and never by processes of two users.
//   - A block is in the index only while its slot's generation is the even one it was published with.
// Single-threaded. Everything that clients say has been parsed and nothing else; it is checked here.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "daemon/host_cache/seen_keys.h"
#include "daemon/host_cache/slab.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

// What the cache wants others to know of its slabs.
class HostCacheEvents {
 public:
  virtual ~HostCacheEvents() = default;
  virtual void SlabOpened(Slab& slab) = 0;
  // Its writer may write it from now on.
  virtual void SlabGranted(Slab& slab) = 0;
  // The slab's region, which then leaves the domain. Importers are told.
  virtual void SlabClosing(Domain& domain, Region& region) = 0;
  virtual void WorkToDo() = 0;
  // Memory of registries that kvmd may still have to make: none of the host cache's.
  virtual std::uint64_t RegistryBytesToCome() const { return 0; }
};

// Bytes of a slab: as configured, else a 64th of the cache, 64 MiB to 1 GiB, but never more than a 16th.
std::uint64_t HostCacheSlabBytes(const Config& config) noexcept;
// Whether the quotas, and machine and control groups beside the registries, are large enough for it. kInvalidArgument, the
// option named. kSystem, kUnsupported: how much memory there is can't be told. `restored`: a kvmd that takes this one's
// place is given what it holds, registries too, and makes its own beside them.
[[nodiscard]] Status CheckHostCache(const Config& config, bool restored = false);

class HostCache final : public SlabObserver {
 public:
  struct Offerer {
    ClientId client = 0;
    std::uint32_t uid = 0, pid = 0;
    std::uint64_t instance = 0;  // Hello::instance; 0: it has none
  };
  struct Grant {
    std::uint32_t record = 0;
    Slab* slab = nullptr;
    std::uint32_t slot = 0;
    Generation write = 0;
  };
  // What became of an offer. Records from `decided` on wait for memory that is being allocated or given up.
  struct Decision {
    std::size_t decided = 0;
    std::vector<Grant> grants;
    std::vector<std::uint32_t> present;  // records
    std::uint32_t not_admitted = 0, stale = 0, full = 0;
    std::string reason;  // of those for which there was no room
  };
  // Of one domain, cumulative.
  struct Counters {
    std::uint64_t hits = 0, stored = 0, evicted = 0, refused = 0, expired = 0;
  };
  struct Usage {
    std::uint64_t bytes = 0, used_bytes = 0, blocks = 0, huge_bytes = 0, transparent_bytes = 0;
    std::uint32_t slabs = 0;
  };

  // `config.host_cache_bytes` is not 0. Both outlive the cache.
  HostCache(const Config& config, HostCacheEvents& host);
  ~HostCache() override;

  // ---- clients (host_cache.cc)

  // `source`: a live region of the client's. `asked`: admission is not in question.
  Decision Offer(const Offerer& offerer, Domain& domain, Region& source, std::span<const PublishRecord> records, bool asked);
  void Done(ClientId client, Domain& domain, const kvmwire::CompleteStore& done);
  void Used(Domain& domain, const kvmwire::HostCacheUse& use);
  void Leave(ClientId client, std::shared_ptr<WatchedProcess> process);

  // ---- memory (host_cache_memory.cc)

  void Tick(SteadyTime now);
  // A slice of allocating; true if there is more.
  bool Work();
  // Whether something has changed for offers that wait, since the last call.
  bool TakeProgress() noexcept { return std::exchange(progress_, false); }
  // A worker's region of another block size than what is kept of its model and shard: the latter goes.
  void DropMismatched(Domain& domain, const Region& region);
  // A slab whose memory has been damaged, with all that it holds.
  void GiveUp(Region& region);
  // The domain is about to go, with all its regions.
  void Forget(Domain& domain);

  // ---- what an earlier kvmd has left (host_cache_restore.cc)

  // A slab whose region is a live one of the domain, and nobody's. `process`: of its last writer, which may still run.
  // kResourceExhausted, kInvalidArgument: this kvmd's options have no place for it. What Slab::Reopen says.
  [[nodiscard]] Status Restore(Domain& domain, Region& region, const kvmwire::StoredSlab& stored,
                               const std::shared_ptr<WatchedProcess>& process);
  // An entry of the old registry, in any order. True: the block is held, and in the index.
  bool RestoreEntry(Region& region, const IndexEntry& entry);
  // After a slice of entries: tells the policy.
  void UseRestored();
  // No entry of this slab's is left: its other slots can be used.
  void FinishRestore(Region& region);
  // What a next kvmd has to know of a slab. Its writer; null: there has been none.
  const SlabWriter* Describe(const Region& region, kvmwire::StoredSlab& stored) const;

  Counters CountersOf(const Domain& domain) const;
  Usage UsageOf(const Domain* domain) const;  // null: of all
  std::uint64_t BytesOf(ClientId client) const;
  std::vector<Slab*> SlabsOf(ClientId client) const;  // that it may write
  std::uint64_t max_bytes() const noexcept { return config_.host_cache_bytes; }
  std::uint64_t slab_bytes() const noexcept { return slab_bytes_; }

  void OnEntryErased(Slab& slab, std::uint32_t slot) noexcept override;

  static constexpr std::uint32_t kMaxSlotsPerSlab = 1 << 16;
  static constexpr std::uint32_t kMaxGrantsPerClient = 4096;

 private:
  // A closed slab whose memory importers may still have mapped.
  struct Closing {
    Domain* domain;
    std::uint32_t row, region_epoch;
    std::uint64_t bytes;
  };
  // Why a writer can't have one more slab.
  enum class Limit { kNone, kClient, kDomain, kFull, kMachine };
  struct Place {
    Slab* slab;
    policy::Slot slot;
  };
  // kStored: full, and so it is for all of the offer, since leases hold what could make room.
  enum class NoPlace { kWait, kFull, kStored };

  // host_cache.cc
  std::shared_ptr<SlabWriter> WriterOf(const Offerer& offerer, Domain& domain);
  std::shared_ptr<SlabWriter> Resume(const Offerer& offerer, Domain& domain);
  SlabClass& GroupOf(Domain& domain, const Region& source);
  bool Admitted(const Domain& domain, const BlockKey& key, bool asked);
  Slab* SlabAt(Domain& domain, std::uint32_t row, std::uint32_t region_epoch);
  void Use(SlabClass& group, std::span<const policy::Slot> slots, bool imported);
  void Evict(Slab& slab, policy::Slot slot);
  void ExpireGrants(SlabWriter& writer, SteadyTime now);
  void Departed(SlabWriter& writer);

  // host_cache_restore.cc
  Status CheckRoomFor(const SlabClass& group, std::uint64_t bytes) const;

  // host_cache_memory.cc
  std::optional<Place> FindPlace(SlabClass& group, const std::shared_ptr<SlabWriter>& writer, const PublishRecord& record,
                                 std::string& reason, NoPlace& otherwise);
  std::optional<policy::Slot> OwnVictim(SlabClass& group, const SlabWriter& writer, const PublishRecord& wanted);
  bool HoldsPinned(const SlabClass& group, const SlabWriter& writer) const;
  Slab* Abandoned(const SlabClass& group, const SlabWriter& writer, bool with_room) const;
  // `held`: set if there would be one but for leases.
  Slab* ToGiveUp(const SlabClass& group, const SlabWriter& writer, std::optional<std::uint64_t> own_used_ms, bool same_domain,
                 bool& held) const;
  void AssignWriter(Slab& slab, const std::shared_ptr<SlabWriter>& writer);
  Limit LimitFor(const SlabClass& group, const SlabWriter& writer) const;
  std::string Reason(Limit limit) const;
  bool Allocating(const SlabClass& group, const SlabWriter& writer) const;
  std::uint64_t PromisedBytes() const;
  bool StartSlab(SlabClass& group, const std::shared_ptr<SlabWriter>& writer);
  void AllocateAhead(SlabClass& group, const std::shared_ptr<SlabWriter>& writer);
  void FinishSlab(std::unique_ptr<Slab> slab);
  void Close(Slab& slab);
  void DropGroupIfEmpty(SlabClass& group);
  std::uint64_t SlabBytes(const SlabClass& group) const;

  const Config& config_;
  HostCacheEvents& host_;
  const std::uint64_t slab_bytes_;
  std::map<SlabClass::Kind, std::unique_ptr<SlabClass>> groups_;
  std::vector<std::unique_ptr<Slab>> slabs_;
  std::deque<std::unique_ptr<Slab>> allocating_;
  std::vector<Closing> closing_;
  std::map<ClientId, std::shared_ptr<SlabWriter>> writers_;
  std::vector<std::shared_ptr<SlabWriter>> departed_;  // whose processes may still write
  std::map<const Domain*, SeenKeys> seen_;
  std::map<const Domain*, Counters> counters_;
  std::set<const Slab*> restoring_;                           // entries of theirs are still to come
  std::map<SlabClass*, std::vector<policy::Slot>> restored_;  // since the last UseRestored
  std::uint64_t next_name_ = 0;
  SteadyTime now_ = std::chrono::steady_clock::now();  // of the last Tick
  SteadyTime no_memory_until_{};
  bool progress_ = false;
};

}  // namespace kvm::daemon
