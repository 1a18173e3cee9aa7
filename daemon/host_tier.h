// The host cache: blocks that kvmd keeps in host memory for whoever asks, whatever becomes of those who computed them.
//
// It is cut into chunks (tier_chunk.h); a worker offers blocks, is granted slots of chunks that are its own to
// write, copies, and says that it has. kvmd copies nothing. host_tier.cc: offers, stores and uses; host_tier_memory.cc: where
// chunks come from and who gives one up; host_tier_restore.cc: a cache that an earlier kvmd filled.
//
// Invariants:
//   - A slot is granted to one writer at a time, and again only after that writer has answered for it or its process
//     has ended: a late copy can't land in somebody else's block.
//   - A chunk is writable by one living process at most, and never by processes of two users.
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

#include "daemon/config.h"
#include "daemon/seen_keys.h"
#include "daemon/tier_chunk.h"

namespace kvm::daemon {

// What the tier wants others to know of its chunks.
class TierHost {
 public:
  virtual ~TierHost() = default;
  virtual void ChunkOpened(TierChunk& chunk) = 0;
  // Its writer may write it from now on.
  virtual void ChunkGranted(TierChunk& chunk) = 0;
  // The chunk's region, which then leaves the domain. Importers are told.
  virtual void ChunkClosing(Domain& domain, Region& region) = 0;
  virtual void WorkToDo() = 0;
  // Memory of registries that kvmd may still have to make: none of the host cache's.
  virtual std::uint64_t RegistryBytesToCome() const { return 0; }
};

// Bytes of a chunk: as configured, else a 64th of the cache, 64 MiB to 1 GiB, but never more than a 16th.
std::uint64_t HostCacheChunkBytes(const Config& config) noexcept;
// Whether the quotas, and machine and control groups beside the registries, are large enough for it. kInvalidArgument, the
// option named. kSystem, kUnsupported: how much memory there is can't be told. `restored`: a kvmd that takes this one's
// place is given what it holds, registries too, and makes its own beside them.
[[nodiscard]] Status CheckHostCache(const Config& config, bool restored = false);

class HostTier final : public TierObserver {
 public:
  struct Offerer {
    ClientId client = 0;
    std::uint32_t uid = 0, pid = 0;
    std::uint64_t instance = 0;  // Hello::instance; 0: it has none
  };
  struct Grant {
    std::uint32_t record = 0;
    TierChunk* chunk = nullptr;
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
    std::uint64_t hits = 0, stowed = 0, evicted = 0, refused = 0, expired = 0;
  };
  struct Usage {
    std::uint64_t bytes = 0, used_bytes = 0, blocks = 0, huge_bytes = 0, transparent_bytes = 0;
    std::uint32_t chunks = 0;
  };

  // `config.host_cache_bytes` is not 0. Both outlive the tier.
  HostTier(const Config& config, TierHost& host);
  ~HostTier() override;

  // ---- clients (host_tier.cc)

  // `source`: a live region of the client's. `asked`: admission is not in question.
  Decision Offer(const Offerer& offerer, Domain& domain, Region& source, std::span<const PublishRecord> records, bool asked);
  void Done(ClientId client, Domain& domain, const kvmwire::StowDone& done);
  void Used(Domain& domain, const kvmwire::HostCacheUse& use);
  void Leave(ClientId client, std::shared_ptr<WatchedProcess> process);

  // ---- memory (host_tier_memory.cc)

  void Tick(SteadyTime now);
  // A slice of allocating; true if there is more.
  bool Work();
  // Whether something has changed for offers that wait, since the last call.
  bool TakeProgress() noexcept { return std::exchange(progress_, false); }
  // A worker's region of another block size than what is kept of its model and shard: the latter goes.
  void DropMismatched(Domain& domain, const Region& region);
  // A chunk whose memory has been damaged, with all that it holds.
  void GiveUp(Region& region);
  // The domain is about to go, with all its regions.
  void Forget(Domain& domain);

  // ---- what an earlier kvmd has left (host_tier_restore.cc)

  // A chunk whose region is a live one of the domain, and nobody's. `process`: of its last writer, which may still run.
  // kResourceExhausted, kInvalidArgument: this kvmd's options have no place for it. What TierChunk::Reopen says.
  [[nodiscard]] Status Restore(Domain& domain, Region& region, const kvmwire::StoredChunk& stored,
                               const std::shared_ptr<WatchedProcess>& process);
  // An entry of the old registry, in any order. True: the block is held, and in the index.
  bool RestoreEntry(Region& region, const IndexEntry& entry);
  // After a slice of entries: tells the policy.
  void UseRestored();
  // No entry of this chunk's is left: its other slots can be used.
  void FinishRestore(Region& region);
  // What a next kvmd has to know of a chunk. Its writer; null: there has been none.
  const TierWriter* Describe(const Region& region, kvmwire::StoredChunk& stored) const;

  Counters CountersOf(const Domain& domain) const;
  Usage UsageOf(const Domain* domain) const;  // null: of all
  std::uint64_t BytesOf(ClientId client) const;
  std::vector<TierChunk*> ChunksOf(ClientId client) const;  // that it may write
  std::uint64_t max_bytes() const noexcept { return config_.host_cache_bytes; }
  std::uint64_t chunk_bytes() const noexcept { return chunk_bytes_; }

  void OnEntryErased(TierChunk& chunk, std::uint32_t slot) noexcept override;

  static constexpr std::uint32_t kMaxSlotsPerChunk = 1 << 16;
  static constexpr std::uint32_t kMaxGrantsPerClient = 4096;

 private:
  // A closed chunk whose memory importers may still have mapped.
  struct Closing {
    Domain* domain;
    std::uint32_t row, region_epoch;
    std::uint64_t bytes;
  };
  // Why a writer can't have one more chunk.
  enum class Limit { kNone, kClient, kDomain, kFull, kMachine };
  struct Place {
    TierChunk* chunk;
    policy::Slot slot;
  };
  // kHeld: full, and so it is for all of the offer, since leases hold what could make room.
  enum class NoPlace { kWait, kFull, kHeld };

  // host_tier.cc
  std::shared_ptr<TierWriter> WriterOf(const Offerer& offerer, Domain& domain);
  std::shared_ptr<TierWriter> Resume(const Offerer& offerer, Domain& domain);
  TierGroup& GroupOf(Domain& domain, const Region& source);
  bool Admitted(const Domain& domain, const BlockKey& key, bool asked);
  TierChunk* ChunkAt(Domain& domain, std::uint32_t row, std::uint32_t region_epoch);
  void Use(TierGroup& group, std::span<const policy::Slot> slots, bool imported);
  void Evict(TierChunk& chunk, policy::Slot slot);
  void ExpireGrants(TierWriter& writer, SteadyTime now);
  void Departed(TierWriter& writer);

  // host_tier_restore.cc
  Status CheckRoomFor(const TierGroup& group, std::uint64_t bytes) const;

  // host_tier_memory.cc
  std::optional<Place> FindPlace(TierGroup& group, const std::shared_ptr<TierWriter>& writer, const PublishRecord& record,
                                 std::string& reason, NoPlace& otherwise);
  std::optional<policy::Slot> OwnVictim(TierGroup& group, const TierWriter& writer, const PublishRecord& wanted);
  bool HoldsPinned(const TierGroup& group, const TierWriter& writer) const;
  TierChunk* Abandoned(const TierGroup& group, const TierWriter& writer, bool with_room) const;
  // `held`: set if there would be one but for leases.
  TierChunk* ToGiveUp(const TierGroup& group, const TierWriter& writer, std::optional<std::uint64_t> own_used_ms, bool same_domain,
                      bool& held) const;
  void Adopt(TierChunk& chunk, const std::shared_ptr<TierWriter>& writer);
  Limit LimitFor(const TierGroup& group, const TierWriter& writer) const;
  std::string Reason(Limit limit) const;
  bool Allocating(const TierGroup& group, const TierWriter& writer) const;
  std::uint64_t PromisedBytes() const;
  bool StartChunk(TierGroup& group, const std::shared_ptr<TierWriter>& writer);
  void AllocateAhead(TierGroup& group, const std::shared_ptr<TierWriter>& writer);
  void FinishChunk(std::unique_ptr<TierChunk> chunk);
  void Close(TierChunk& chunk);
  void DropGroupIfEmpty(TierGroup& group);
  std::uint64_t ChunkBytes(const TierGroup& group) const;

  const Config& config_;
  TierHost& host_;
  const std::uint64_t chunk_bytes_;
  std::map<TierGroup::Kind, std::unique_ptr<TierGroup>> groups_;
  std::vector<std::unique_ptr<TierChunk>> chunks_;
  std::deque<std::unique_ptr<TierChunk>> allocating_;
  std::vector<Closing> closing_;
  std::map<ClientId, std::shared_ptr<TierWriter>> writers_;
  std::vector<std::shared_ptr<TierWriter>> departed_;  // whose processes may still write
  std::map<const Domain*, SeenKeys> seen_;
  std::map<const Domain*, Counters> counters_;
  std::set<const TierChunk*> restoring_;                      // entries of theirs are still to come
  std::map<TierGroup*, std::vector<policy::Slot>> restored_;  // since the last UseRestored
  std::uint64_t next_name_ = 0;
  SteadyTime now_ = std::chrono::steady_clock::now();  // of the last Tick
  SteadyTime no_memory_until_{};
  bool progress_ = false;
};

}  // namespace kvm::daemon
