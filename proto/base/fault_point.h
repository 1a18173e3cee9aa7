// Places where a test can end a process as a crash would, or stop it: between any two steps whose
// effects other processes can see.
//
// KVM_FAULT_POINT(name) costs nothing unless KVM_FAULT_POINTS is defined, and only the test suite's
// build defines it. In that build, the environment variable KVM_FAULT_FILE names a file that
// contains "NAME COUNT". From the moment that the file exists, the process counts how often it
// reaches NAME, and kills itself at the COUNT-th time. With "NAME COUNT stop" it stops instead,
// until it is sent SIGCONT.
#pragma once

// client_: in a worker's process; kvmd_: in kvmd.
#define KVM_FAULT_POINT_NAMES(X)                                             \
  /* registering */                                                          \
  X(client_request_sent) /* any request, not answered yet */                 \
  X(client_memory_made)  /* of a region that kvmd does not know yet */       \
  X(client_registered)                                                       \
  X(kvmd_region_added) /* not kept, announced or answered yet */             \
  X(kvmd_region_persisted)                                                   \
  X(kvmd_region_announced)                                                   \
  X(kvmd_file_stored)     /* of a region whose manifest is not */            \
  X(kvmd_manifest_stored) /* the one that it replaces is there, too */       \
  /* publishing */                                                           \
  X(client_write_begun)                                                      \
  X(client_block_readable) /* of a batch that kvmd does not know yet */      \
  X(client_batch_readable)                                                   \
  X(client_batch_sent)                                                       \
  X(kvmd_slot_being_written) /* its version is odd */                        \
  X(kvmd_slot_written)       /* its tag is not */                            \
  X(kvmd_entry_inserted)     /* its block does not know its slot yet */      \
  X(kvmd_batch_published)    /* not acknowledged yet */                      \
  X(kvmd_entry_erased)                                                       \
  /* importing */                                                            \
  X(client_peer_mapped)                                                      \
  X(client_import_begun)                                                     \
  X(client_block_copied) /* not validated yet */                             \
  X(client_import_done)                                                      \
  X(client_withdraw_unmapped) /* not acknowledged yet */                     \
  /* offloading */                                                           \
  X(client_store_granted)                                                    \
  X(client_store_copied) /* kvmd does not know yet */                        \
  X(client_store_done)                                                       \
  X(kvmd_slab_allocating)                                                    \
  X(kvmd_slab_opened)    /* its writer does not have it yet */               \
  X(kvmd_slab_persisted) /* the same */                                      \
  X(kvmd_store_granted)  /* the answer is not out yet */                     \
  X(kvmd_store_readable) /* not in the index yet */                          \
  X(kvmd_store_published)                                                    \
  X(kvmd_evict_begun)     /* readable, and in the index */                   \
  X(kvmd_evict_withdrawn) /* in the index still */                           \
  /* dying, adopting, ending */                                              \
  X(kvmd_orphan_made)                                                        \
  X(client_adoption_granted) /* not mapped yet */                            \
  X(client_adopted)                                                          \
  X(kvmd_adoption_taken) /* not kept or answered yet */                      \
  X(kvmd_adoption_persisted)                                                 \
  X(kvmd_adoption_answered)                                                  \
  X(client_blocks_ended) /* of a region that is unregistered */              \
  X(client_unregistering)                                                    \
  X(kvmd_region_withdrawn) /* importers know, its entries are there */       \
  /* kvmd's start with what another has left */                              \
  X(kvmd_restore_registry) /* the new one is kept, and empty */              \
  X(kvmd_restore_region)                                                     \
  X(kvmd_rebuild_slice)                                                      \
  X(kvmd_rebuild_region_persisted) /* its manifest names the new registry */ \
  X(kvmd_rebuild_done)             /* the old registry is still kept */

#if defined(KVM_FAULT_POINTS)

#include <cstdint>

namespace kvm {

enum class FaultPoint : std::uint8_t {
#define KVM_FAULT_POINT_ENUMERATOR(name) name,
  KVM_FAULT_POINT_NAMES(KVM_FAULT_POINT_ENUMERATOR)
#undef KVM_FAULT_POINT_ENUMERATOR
};

// Thread-safe.
void ReachFaultPoint(FaultPoint point) noexcept;

}  // namespace kvm

#define KVM_FAULT_POINT(name) ::kvm::ReachFaultPoint(::kvm::FaultPoint::name)

#else

#define KVM_FAULT_POINT(name) static_cast<void>(0)

#endif
