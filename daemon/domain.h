// Domain: one isolation unit with a registry segment, models, regions and entries of its own.
//
// The only writer of its segment. Everything a client says arrives here already parsed and is checked
// here; no call can fail in a way that harms another client. Work that grows with a client's size
// (dropping its entries, looking for stale ones) is cut into bounded slices. Single-threaded.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "daemon/block_index_writer.h"
#include "daemon/config.h"
#include "daemon/region_table.h"
#include "daemon/registry_segment.h"
#include "kvm/model_spec.h"

namespace kvm::daemon {

struct Owner {
  ClientId client = 0;
  std::uint32_t pid = 0, uid = 0;
};

class Domain {
 public:
  // kSystem: no memory for the segment.
  [[nodiscard]] static Result<std::unique_ptr<Domain>> Create(const std::string& name, const Config& config);

  const std::string& name() const noexcept { return name_; }
  const RegistrySegment& segment() const noexcept { return segment_; }
  RegistrySegment& segment() noexcept { return segment_; }
  std::uint64_t entries() const noexcept { return index_.entries(); }
  std::uint32_t live_regions() const noexcept;
  std::uint32_t live_models() const noexcept;

  // Row of the model; declares it if it is new. kInvalidArgument, kResourceExhausted.
  [[nodiscard]] Result<std::uint32_t> DeclareModel(ClientId client, const ModelSpec& spec);
  bool HasDeclared(ClientId client, std::uint32_t model) const noexcept;

  // kAlreadyExists, kNotFound (model), kBadGeometry, kResourceExhausted and what CheckRegion says.
  [[nodiscard]] Result<Region*> RegisterRegion(const Owner& owner, kvmwire::RegionDescriptor descriptor, std::vector<UniqueFd> fds);
  Region* FindRegion(std::uint32_t row, std::uint32_t region_epoch) noexcept;  // live or leaving; null if none
  std::vector<Region*> RegionsOf(ClientId owner) noexcept;
  std::vector<Region*> LiveRegionsOfModel(std::uint32_t model) noexcept;

  kvmwire::PublishAck Publish(ClientId client, const kvmwire::Publish& publish);
  void Retract(ClientId client, const kvmwire::Retract& retract);

  // Takes a region out: nothing can be published to it any more, its entries go in slices (Reap), then,
  // unless its waiting_for holds that up, its row is free again. Call again when that is empty.
  void StartLeaving(Region& region) noexcept;
  // The model declarations of a client that has gone.
  void ForgetClient(ClientId client) noexcept;

  // A slice of work; true if there is more.
  bool Reap(std::uint32_t blocks);
  // Drops entries whose block has been rewritten since, looking at `slots` slots.
  void Sweep(std::uint32_t slots);
  void WriteRows();  // entry counts of regions that changed

 private:
  struct Model {
    ModelSpec spec;
    Fingerprint fingerprint;
    std::set<ClientId> declared_by;
  };

  Domain(std::string name, const Config& config, RegistrySegment segment);

  enum class Outcome { kInserted, kFull, kReplicas, kStale, kInvalid };
  Outcome PublishOne(Region& region, const PublishRecord& record, std::uint32_t now_s);
  bool DropStaleReplica(const BlockKey& key, std::size_t& replicas);
  bool MakeRoom(const Region& publisher);
  bool IsStale(const IndexEntry& entry) const noexcept;
  void EraseEntry(std::uint64_t slot, std::atomic<std::uint64_t>& counter) noexcept;
  void WriteRow(Region& region) noexcept;
  void WriteModelRow(std::uint32_t row) noexcept;
  std::uint64_t BlocksOf(ClientId client) const noexcept;

  const std::string name_;
  const Config& config_;
  RegistrySegment segment_;
  BlockIndexWriter index_;
  std::vector<std::unique_ptr<Model>> models_;    // by row; null: free
  std::vector<std::unique_ptr<Region>> regions_;  // by row; null: free
  std::set<std::uint32_t> leaving_;               // rows
  std::uint32_t next_region_epoch_ = 1;
  std::uint64_t sweep_hand_ = 0, evict_hand_ = 0;
  const std::uint64_t started_ns_ = MonotonicNs();
};

}  // namespace kvm::daemon
