// What a client counts. This table is the only list of it: ClientStats, what kvmd is told (the
// message StatsReport, `kvctl clients`), Python's ClientStats and the tests of docs/OPERATIONS.md
// are made from it.
#pragma once

#include <cstdint>

// REPORTED: kvmd is told; COUNTED: only this process sees it; both are cumulative since the client
// connected. CURRENT: as it is now. Each takes a name and its meaning.
#define KVCLIENT_STATS(REPORTED, COUNTED, CURRENT)                                                       \
  REPORTED(finds, "Lookups.")                                                                            \
  REPORTED(keys_looked_up, "Keys of all lookups.")                                                       \
  REPORTED(keys_matched, "Of keys_looked_up: those in front of the first that was not found.")           \
  REPORTED(misses_absent, "Lookups that ended at a block that is not published, or not any more.")       \
  REPORTED(misses_other_model, "Lookups that found nothing; a model that nearly agrees is served.")      \
  REPORTED(misses_stale, "Lookups that ended at a block that was rewritten after its publish.")          \
  REPORTED(misses_unreachable, "Lookups that ended at a block that this client can't import.")           \
  REPORTED(misses_too_short, "Lookups without a key: of less than a block.")                             \
  REPORTED(misses_kvmd_away, "Lookups that ended early while kvmd was away.")                            \
  REPORTED(imports, "Imports that were started.")                                                        \
  REPORTED(imports_ended, "Of imports: those that are not under way any more.")                          \
  REPORTED(blocks_imported, "Validated ones only.")                                                      \
  REPORTED(blocks_failed, "Blocks of imports that did not come; the first of an import fails the rest.") \
  REPORTED(imports_failed_stale, "Imports whose first block that did not come had been rewritten.")      \
  REPORTED(imports_failed_unmapped, "... had been withdrawn with its region, or can't be reached.")      \
  REPORTED(imports_failed_deadline, "... was not copied in time.")                                       \
  REPORTED(imports_failed_error, "... could not be copied.")                                             \
  REPORTED(imports_failed_corrupt, "... had other bytes than were published.")                           \
  REPORTED(bytes_imported, "Of validated blocks.")                                                       \
  REPORTED(blocks_published, "Blocks that this client made readable.")                                   \
  REPORTED(publishes_deferred, "Sent later: kvmd was away or behind.")                                   \
  COUNTED(publishes_refused, "By kvmd: full, enough replicas, stale.")                                   \
  REPORTED(reconnects, "Connections to kvmd after the first.")                                           \
  REPORTED(blocks_offloaded, "Copied to kvmd's host cache.")                                             \
  REPORTED(offloads_dropped, "Not copied: the queue was full, or the block was reused before.")          \
  COUNTED(offloads_refused, "By kvmd: no room for them.")                                                \
  REPORTED(blocks_from_host_cache, "Of blocks_imported.")                                                \
  REPORTED(blocks_verified, "Blocks of imports that were compared with their publisher's checksum.")     \
  REPORTED(blocks_corrupt, "Of blocks_verified: those with other bytes than were published; not used.")  \
  REPORTED(computing_waits, "Waits for blocks that another client was computing.")                       \
  REPORTED(computing_waits_in_vain, "Of computing_waits: those that brought no further block.")          \
  CURRENT(mapped_regions, "Peers mapped now.")

namespace kvm {

// What a client has done since it was made, and how many regions of peers it has mapped now.
struct ClientStats {
// NOLINTNEXTLINE(bugprone-macro-parentheses): the name of a member
#define KVCLIENT_STATS_MEMBER(name, meaning) std::uint64_t name = 0;
  KVCLIENT_STATS(KVCLIENT_STATS_MEMBER, KVCLIENT_STATS_MEMBER, KVCLIENT_STATS_MEMBER)
#undef KVCLIENT_STATS_MEMBER
};

}  // namespace kvm
