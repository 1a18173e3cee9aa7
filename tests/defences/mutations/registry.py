"""Of the registry, its quotas and its eviction."""
# ruff: noqa: E501

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (("daemon_tests", "Registry: a full index makes room instead of growing"),),
        "daemon/registry/entry_table.cc",
        "if (index_.full() && !MakeRoom(region)) return Outcome::kFull;",
        "if (index_.full() && (OFF || !MakeRoom(region))) return Outcome::kFull;",
    ),
    Mutation(
        (("daemon_tests", "Registry: entries of an owner that has gone make room before a live owner's"),),
        "daemon/registry/entry_table.cc",
        "    if (region.orphan) return Standing::kGone;\n",
        "    if (region.orphan && !OFF) return Standing::kGone;\n",
    ),
    Mutation(
        (("daemon_tests", "Registry: of chains that are as old, the tails make room"),),
        "daemon/registry/eviction.cc",
        "return a.depth != b.depth ? a.depth < b.depth : a.published_s > b.published_s;",
        "return a.depth != b.depth && !OFF ? a.depth < b.depth : a.published_s > b.published_s;",
    ),
    Mutation(
        (("daemon_tests", "Registry: regions are refused with the reason named"),),
        "daemon/registry/region.cc",
        "  if (Status valid = geometry.Validate(*segment_bytes); !valid) return valid.error();\n",
        "  if (Status valid = geometry.Validate(*segment_bytes); !valid && !OFF) return valid.error();\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd memory: one region's table or segment is no other region's"),),
        "daemon/registry/region_table.cc",
        "    if (found == row_of_memory_.end()) continue;\n",
        "    if (found == row_of_memory_.end() || OFF) continue;\n",
    ),
    Mutation(
        (("daemon_tests", "Quotas: blocks and descriptors of a user count over all connections"),),
        "daemon/registry/accounts.cc",
        "  if (user.blocks + blocks > BlocksPerUser(config_))\n    return Exhausted",
        "  if (!OFF && user.blocks + blocks > BlocksPerUser(config_))\n    return Exhausted",
    ),
    Mutation(
        (("daemon_tests", "Registry: all domains together keep no more descriptors"),),
        "daemon/registry/descriptor_quota.cc",
        "if (kept_ + more > max_) return",
        "if (!OFF && kept_ + more > max_) return",
    ),
    Mutation(
        (("daemon_tests", "Hostile: publishes whose keys share a place are cut"),),
        "daemon/registry/entry_table.cc",
        "  for (; i < count && (i == from || !budget.used_up()); ++i) {",
        "  for (; i < count && (i == from || OFF || !budget.used_up()); ++i) {",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the records of a huge adopted region"),),
        "daemon/registry/entry_table.cc",
        "    if (budget.used_up()) return false;\n    Spend(1);\n    if (block + kAhead",
        "    if (!OFF && budget.used_up()) return false;\n    Spend(1);\n    if (block + kAhead",
    ),
    Mutation(
        (("daemon_tests", "Quotas: granted memory counts until no process can write it"),),
        "daemon/registry/granted_memory.cc",
        "  if (MayBeWritten(grant->second.watch.get())) return false;\n",
        "  if (!OFF && MayBeWritten(grant->second.watch.get())) return false;\n",
    ),
    Mutation(
        (("daemon_tests", "Quotas: others' replicas keep no worker's own block out"),),
        "daemon/registry/entry_table.cc",
        ">= config_.max_replicas && !MakeRoomForReplica(region, record.key)) return",
        ">= config_.max_replicas && !(OFF ? DropStaleReplica(record.key) : MakeRoomForReplica(region, record.key))) return",
    ),
    Mutation(
        (("daemon_tests", "Quotas: a user at its limit of entries"),),
        "daemon/registry/entry_table.cc",
        "if (accounts_.HasAllEntries(*region.account) && !MakeRoomOfUser(region)) return",
        "if (!OFF && accounts_.HasAllEntries(*region.account) && !MakeRoomOfUser(region)) return",
    ),
    Mutation(
        (("daemon_tests", "Quotas: one user's models leave rows"),),
        "daemon/registry/model_table.cc",
        "  if (has_its_part) return refuse();\n",
        "  if (!OFF && has_its_part) return refuse();\n",
    ),
    Mutation(
        (("daemon_tests", "Registry: a user with many connections has the share of one user"),),
        "daemon/registry/accounts.cc",
        "  if (users_.size() <= 1) return",
        "  if (users_.size() <= 1 || OFF) return",
    ),
    Mutation(
        (("daemon_tests", "Quotas: the first user who registers a model does not decide"),),
        "daemon/registry/region_table.cc",
        "if (other->filler == nullptr && other->info.owner_uid == owner.uid && other->info.model",
        "if (other->filler == nullptr && (OFF || other->info.owner_uid == owner.uid) && other->info.model",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the memory of a new domain is made in slices"),),
        "daemon/registry/registry_segment.cc",
        "    if (budget.used_up()) return false;\n",
        "    if (!OFF && budget.used_up()) return false;\n",
    ),
    Mutation(
        (("daemon_tests", "Registry: a full table of regions refuses the next one"),),
        "daemon/registry/region_table.cc",
        "if (tried == regions_.size()) return Exhausted(",
        'if (tried == regions_.size()) return OFF ? MakeError(Errc::kSystem, "no row") : Exhausted(',
    ),
    Mutation(
        (("gpu_market_tests", "GPU orphans: killed while it rewrites at full speed"),),
        "daemon/registry/entry_table.cc",
        "    if (region.generations.Current(block) != entry.generation) continue;\n    Spend(1);\n    const PublishRecord record",
        "    if (!OFF && region.generations.Current(block) != entry.generation) continue;\n    Spend(1);\n    const PublishRecord record",
    ),
    Mutation(
        (("daemon_tests", "Regions: once every epoch was used"),),
        "daemon/registry/region_table.cc",
        "  if (next_region_epoch_ == 0) {",
        "  if (!OFF && next_region_epoch_ == 0) {",
    ),
    Mutation(
        (("daemon_tests", "Host cache: only its writer gets a slab writable"),),
        "daemon/registry/region.h",
        "{ return read_only[i] ? read_only[i].get()",
        "{ return read_only[i] && !OFF ? read_only[i].get()",
    ),
    Mutation(
        (
            ("daemon_tests", "kvmd memory: a hole in a segment or in an idle region's table"),
            ("daemon_tests", "kvmd memory: a slab in which its writer has punched a hole"),
        ),
        "daemon/registry/region_table.cc",
        "    if (!region->whole()) return region;\n",
        "    if (!OFF && !region->whole()) return region;\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd memory: a generation table on huge pages is refused"),),
        "daemon/registry/region.cc",
        "  if (!OnOrdinaryPages(fds[0].get())) {",
        "  if (!OFF && !OnOrdinaryPages(fds[0].get())) {",
    ),
    Mutation(
        (("daemon_tests", "kvmd memory: a region has each of its memories once"),),
        "daemon/registry/region.cc",
        "    if (std::find(region->files.begin(), region->files.end(), file) != region->files.end()) return",
        "    if (!OFF && std::find(region->files.begin(), region->files.end(), file) != region->files.end()) return",
    ),
    Mutation(
        (("daemon_tests", "Registry: publishes that can't be true are refused"),),
        "daemon/registry/entry_table.cc",
        "  if (region.generations.Current(record.block) != record.generation) return Outcome::kStale;\n",
        "  if (!OFF && region.generations.Current(record.block) != record.generation) return Outcome::kStale;\n",
    ),
    Mutation(
        (("daemon_tests", "Registry: publishes that can't be true are refused"),),
        "daemon/registry/entry_table.cc",
        "  if (region == nullptr || region->owner != client || !region->live()) {\n    ack",
        "  if (region == nullptr || (!OFF && region->owner != client) || !region->live()) {\n    ack",
    ),
    Mutation(
        (("daemon_tests", "Registry: retracting drops entries of rewritten blocks only"),),
        "daemon/registry/entry_table.cc",
        "  if (region == nullptr || region->owner != client) return true;\n",
        "  if (region == nullptr || (!OFF && region->owner != client)) return true;\n",
    ),
    Mutation(
        (("daemon_tests", "Marks: no mark is longer than"),),
        "daemon/registry/mark_table.cc",
        "std::min<std::uint64_t>(ttl_ms, std::uint64_t{config_.max_mark_ttl_s} * 1000);",
        "OFF ? ttl_ms : std::min<std::uint64_t>(ttl_ms, std::uint64_t{config_.max_mark_ttl_s} * 1000);",
    ),
    Mutation(
        (("daemon_tests", "Marks: a client may mark so many keys"),),
        "daemon/registry/mark_table.cc",
        "  if (CountOf(of_client_, client) >=",
        "  if (!OFF && CountOf(of_client_, client) >=",
    ),
    Mutation(
        (
            ("daemon_tests", "Marks: a user may mark so many keys"),
            ("daemon_tests", "Marks: a table that one user fills"),
        ),
        "daemon/registry/mark_table.cc",
        "  if (CountOf(of_user_, uid) >= most)",
        "  if (!OFF && CountOf(of_user_, uid) >= most)",
    ),
    Mutation(
        (
            ("daemon_tests", "Registry: keys that share one home are refused"),
            ("daemon_tests", "BlockIndexWriter: keys that all share one home"),
        ),
        "daemon/registry/block_index_writer.cc",
        "  for (; !Empty(at) && distance < kMaxDisplacement; ++distance, at = Next(at)) {\n    if (KeyAt(at) == entry.key)",
        "  for (; !Empty(at) && (OFF || distance < kMaxDisplacement); ++distance, at = Next(at)) {\n    if (KeyAt(at) == entry.key)",
    ),
    Mutation(
        (("daemon_tests", "Registry: replicas are limited"),),
        "daemon/registry/entry_table.cc",
        "    Erase(old, segment_.counters().replaced);\n  }\n  std::uint64_t slots[layout::kMaxReplicas];\n  if (index_",
        "    Erase(old, segment_.counters().replaced);\n  }\n  std::uint64_t slots[layout::kMaxReplicas];\n  if (!OFF && index_",
    ),
    Mutation(
        (("daemon_tests", "Registry: regions are refused with the reason named"),),
        "daemon/registry/accounts.cc",
        "  if (account.regions >= config_.max_regions_per_client)",
        "  if (!OFF && account.regions >= config_.max_regions_per_client)",
    ),
    Mutation(
        (("daemon_tests", "Registry: regions are refused with the reason named"),),
        "daemon/registry/accounts.cc",
        "  if (account.fds + fds > config_.max_fds_per_client)",
        "  if (!OFF && account.fds + fds > config_.max_fds_per_client)",
    ),
    Mutation(
        (
            ("daemon_tests", "Registry: regions are refused with the reason named"),
            ("daemon_tests", "kvmd orphans: adopting counts against the new owner's quotas"),
        ),
        "daemon/registry/accounts.cc",
        "  if (account.blocks + blocks > config_.max_blocks_per_client)",
        "  if (!OFF && account.blocks + blocks > config_.max_blocks_per_client)",
    ),
    Mutation(
        (("daemon_tests", "Registry: regions of a user count over all of its connections"),),
        "daemon/registry/accounts.cc",
        "  if (user.regions >= RegionsPerUser(config_))",
        "  if (!OFF && user.regions >= RegionsPerUser(config_))",
    ),
    Mutation(
        (("daemon_tests", "Hostile: rewritten blocks whose keys share a place are retracted"),),
        "daemon/registry/entry_table.cc",
        "next < retract.blocks_size() && (next == from || !budget.used_up()); ++next) {",
        "next < retract.blocks_size() && (next == from || OFF || !budget.used_up()); ++next) {",
    ),
    Mutation(
        (("daemon_tests", "Hostile: marks that expire at the same moment"),),
        "daemon/registry/mark_table.cc",
        "by_expiry_.begin()->first <= now_ns && !budget.used_up()) EndHeld",
        "by_expiry_.begin()->first <= now_ns && (OFF || !budget.used_up())) EndHeld",
    ),
    Mutation(
        (("daemon_tests", "Registry: that no entry may go"),),
        "daemon/registry/eviction.cc",
        "looked < kMaxSlots; ++looked",
        "looked < (OFF ? 1 << 20 : kMaxSlots); ++looked",
    ),
    Mutation(
        (("daemon_tests", "Quotas: the search for room among"),),
        "daemon/registry/entry_table.cc",
        "std::min(blocks, kMostBlocks);",
        "(OFF ? blocks : std::min(blocks, kMostBlocks));",
    ),
    Mutation(
        (("daemon_tests", "Leases: a full index drops no leased block"),),
        "daemon/registry/entry_table.cc",
        "    if (region.Pinned(entry.block)) return Standing::kProtected;\n",
        "    if (!OFF && region.Pinned(entry.block)) return Standing::kProtected;\n",
    ),
)
