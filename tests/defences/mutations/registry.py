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
)
