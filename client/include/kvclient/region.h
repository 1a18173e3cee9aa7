// Region: memory whose blocks this process publishes.
//
// Every write of a block has the same order:
//
//   write = region.BeginWrite(b)            withdraws the old content from every reader, at once
//   … overwrite the block's bytes, wait until that is done …
//   region.Publish({{key, parent, depth, write}})     readable, and found by others soon after
//
// BeginWrite must come before the first byte changes: it is what keeps importers from wrong bytes.
// Thread-safe: every method may be called from any thread. If two threads or processes write one
// block, its generation decides: the later BeginWrite wins, and the earlier write's Publish
// publishes nothing. Destruction unregisters with the client's default deadline; see Unregister for
// what that waits for.
//
// End of ownership: before this process stops owning a block's memory, or writes it without
// BeginWrite, the block is withdrawn permanently. Unregister, the destructors of Region and Client,
// and a failed registration do so. They write the end into the block's generation, since a message
// could be lost. It takes one atomic operation for each block, with or without kvmd.
// Importers that find the block later, or are copying it, get a failed block. From then on
// BeginWrite returns writes that publish nothing, and no earlier write can be published. A crash of
// the owner needs no such step: no process writes its memory any more, so its bytes stay as they
// were (outlives_owner).
//
// fork(): the child has no region. Its parent's memory and generations are not mapped there
// (pointers of SegmentData are dangling), every call fails (kUnsupported, or an empty answer), and
// destruction withdraws nothing. A child must not use two things: descriptors that it inherited,
// which it could map again (they are closed once it executes another program), and GPU memory of
// its parent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvclient/types.h"

namespace kvm {

// Which blocks of a region are offered to kvmd's host cache (kvmd --host-cache), which keeps copies
// in host memory that outlive the region. Without a host cache nothing is offered.
enum class OffloadMode : std::uint8_t {
  // Those that kvmd asks for (--host-cache-admission): each published block, or only those that
  // Offload and OffloadBeforeReuse name
  kAuto = 0,
  kAsked = 1,  // only those that Offload and OffloadBeforeReuse name
  kNever = 2,
};

// Members have initializers, so that a designated initializer may leave some out without a warning
// (-Wmissing-field-initializers).
struct RegionOptions {
  // Unique among this user's live regions in the domain; shown by kvctl; at most 63 bytes.
  // Printable ASCII without spaces.
  std::string name{};
  Shard shard{};
  // Where block b's bytes lie. Geometry::Contiguous(blocks, bytes) for a plain pool.
  Geometry geometry{};
  // GPU to allocate on; zeros: host memory.
  DeviceUuid device{};
  // Publish records a checksum of each block's content, for importers that ask for
  // ImportOptions::verify. It costs the publisher one reading of the bytes, and Publish then waits
  // for the GPU to have read them.
  bool checksums = false;
  // With `checksums`: of one in so many blocks, which their keys choose (InSample in
  // kvm/block_key.h); 0: of none.
  std::uint32_t checksum_one_in = 1;
  OffloadMode offload = OffloadMode::kAuto;
  // If this process dies, kvmd keeps the memory for a while (--orphan-ttl-s): its blocks can still
  // be imported, and a process that replaces this one can take it over (Client::AdoptRegion).
  // False: kvmd frees it at once. Choose that if the restarted process allocates new memory: an
  // orphan's host memory still counts against the process's pod or unit, and its GPU memory is not
  // available on the GPU. cuda_ipc memory is always freed. A process that ends in an orderly way
  // (destructors, Unregister) leaves nothing in either case.
  bool outlives_owner = true;
  // Size of each segment that the geometry refers to, in bytes. Empty: as large as the geometry
  // needs.
  std::vector<std::uint64_t> segment_bytes{};
};

// One block to publish. `depth`: blocks before it in its prefix. `parent`: the key before it, or
// the chain's root for the first one (KeyChain::parent()); it serves operators and eviction.
struct PublishRequest {
  BlockKey key;
  BlockKey parent;
  std::uint32_t depth = 0;
  BlockWrite write;
};

// A block of an adopted region that its last owner has published and not rewritten since.
struct AdoptedBlock {
  BlockKey key;
  std::uint32_t block = 0;
  std::uint32_t depth = 0;  // blocks before it in its prefix
};

class Region;
// What AdoptRegion took over: the region, which is the caller's now, and the blocks in it that can
// be used.
struct AdoptedRegion {
  std::shared_ptr<Region> region;
  std::vector<AdoptedBlock> blocks;  // in block order; all others are free
};

// The outcome of a Publish call.
struct PublishOutcome {
  // Blocks whose generation was made even: peers that know the block may read it
  std::size_t readable = 0;
  // Blocks that were not published: another write had begun, or the checksum could not be computed
  std::size_t lost_race = 0;
  // How many of the readable ones are sent later, since kvmd is away or the queue is full
  std::size_t deferred = 0;
};

// How peers reach a region's memory.
enum class MemoryKind : std::uint8_t {
  kHostMemfd = 1,  // host memory
  kCudaIpc = 2,    // GPU memory of cudaMalloc, registered; ends with its owner
  kCudaVmmFd = 3,  // GPU memory of AllocateRegion or AllocateExportable (kvm/exportable_memory.h)
};
std::string_view MemoryKindName(MemoryKind kind) noexcept;  // "host_memfd", …, as kvctl shows it

// Memory whose blocks this client publishes, and into which it imports. Thread-safe; it ends with
// Unregister or with the last reference to it.
class Region {
 public:
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  // As RegionOptions and the geometry said; they do not change while it lives.
  const std::string& name() const noexcept;
  const Model& model() const noexcept;                            // of its keys
  const Shard& shard() const noexcept;                            // of that model
  const DeviceUuid& device() const noexcept;                      // zeros: host memory
  MemoryKind memory_kind() const noexcept;                        // how importers map it
  const Geometry& geometry() const noexcept;                      // where its blocks lie
  std::uint32_t block_count() const noexcept;                     // of the geometry
  std::uint64_t block_bytes() const noexcept;                     // of one block
  std::span<const std::uint64_t> segment_bytes() const noexcept;  // size of each segment

  // Base address of a segment (host or device). Valid while the region lives; null: no such
  // segment, or a forked child.
  std::byte* SegmentData(std::size_t segment = 0) const noexcept;
  // First byte of part 0's first chunk of `block`; [block_bytes] for a contiguous region. Valid
  // while the region lives; null: no such block, or a forked child.
  std::byte* BlockData(std::uint32_t block) const noexcept;

  // Withdraws `block` and starts a new write of it. One atomic operation, no system call, no
  // message; kvmd drops the entry later. For a block out of range, or of a region that has been
  // unregistered or whose client is gone, the write publishes nothing (generation 0).
  BlockWrite BeginWrite(std::uint32_t block) noexcept;
  // Withdraws `block` without a write to follow. It is the same operation as BeginWrite.
  void Retract(std::uint32_t block) noexcept { static_cast<void>(BeginWrite(block)); }
  // The same for each of `blocks`; for many it is faster than one by one.
  void Retract(std::span<const std::uint32_t> blocks) noexcept;

  // Makes the blocks readable and tells kvmd, batched and without waiting: callers see the effect
  // in other processes some tens of microseconds later (Flush waits for it). While kvmd is away the
  // blocks are remembered and published when it is back. Order: the bytes must be complete before
  // the call.
  PublishOutcome Publish(std::span<const PublishRequest> requests) noexcept;

  // Publish once everything queued on `stream` (of this region's GPU) so far has completed; returns
  // at once and delays neither stream nor caller. For host memory the same as Publish. Publishes
  // that still wait for their stream are dropped when the region ends or the GPU fails.
  // kUnsupported, kSystem: the stream can't be followed; nothing will be published then.
  // kCancelled: the region has been unregistered, or its client is gone.
  [[nodiscard]] Status PublishOnStream(std::span<const PublishRequest> requests, StreamHandle stream) noexcept;

  // Offers published blocks to kvmd's host cache, where they stay when this region's blocks are
  // reused. A thread of the client copies them (on a GPU on a stream of low priority); this call
  // returns at once. A block that is reused before its copy is done is not offloaded. Returns how
  // many were offered: published blocks, as far as the queue (ClientOptions::max_queued_offloads)
  // has room. Returns 0 if there is no host cache, while kvmd is away, and with
  // OffloadMode::kNever.
  std::size_t Offload(std::span<const std::uint32_t> blocks) noexcept;
  // The same for blocks that are to be overwritten next: they are queued before all others, and the
  // call waits until each one has been copied or refused. Returns how many of them the host cache
  // has now; the others are lost when they are overwritten. kDeadlineExceeded: some are still under
  // way. Either way BeginWrite may follow at once.
  [[nodiscard]] Result<std::size_t> OffloadBeforeReuse(std::span<const std::uint32_t> blocks, Deadline deadline) noexcept;

  // Copies bytes of a segment from or to host memory and waits for the copy; for callers without
  // CUDA. A caller that writes a block's bytes calls BeginWrite before and Publish afterwards, as
  // for any write. kInvalidArgument: outside the segment. kSystem: CUDA's error. kUnsupported: a
  // forked child.
  [[nodiscard]] Status WriteBytes(std::size_t segment, std::uint64_t offset, std::span<const std::byte> bytes);
  // The other way, with the same errors.
  [[nodiscard]] Status ReadBytes(std::size_t segment, std::uint64_t offset, std::span<std::byte> bytes) const;

  // Current generation of `block`: even and above 0 if and only if it is readable. 0: no such
  // block, or a forked child.
  std::uint64_t CurrentGeneration(std::uint32_t block) const noexcept;

  // Waits until kvmd has answered every Publish and PublishOnStream made before this call.
  // kDeadlineExceeded. kUnavailable: not connected; the publishes are repeated after a reconnect.
  // If kvmd refuses the region itself, the error that kvmd gave. kCancelled: it has been
  // unregistered, or its client is gone.
  [[nodiscard]] Status Flush(Deadline deadline);

  // Withdraws all blocks permanently, removes the region from the registry, and waits until no
  // importer maps it any more. Afterwards the region can only be destroyed, and the caller may
  // reuse memory that it registered; imports into and from the region that this client has under
  // way must have ended.
  // kDeadlineExceeded: an importer still has it mapped. kUnavailable: kvmd is away, so importers
  // could not be asked. In both cases the region has ended, and imports that are still copying will
  // fail their validation.
  [[nodiscard]] Status Unregister(Deadline deadline);

  struct Impl;  // libkvclient's own
  explicit Region(std::shared_ptr<Impl> impl);
  Impl& impl() const noexcept { return *impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvm
