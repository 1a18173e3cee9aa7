"""Of the host cache."""

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (("daemon_tests", "Slot table: only blocks of the slabs that are named leave"),),
        "daemon/host_cache/slot_table.cc",
        "return slot != parent && slots_[slot].may_leave && among[PositionOf(slot)];",
        "return slot != parent && slots_[slot].may_leave && (OFF || among[PositionOf(slot)]);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a message that names one chain 256 times"),),
        "daemon/host_cache/host_cache.cc",
        "    if (first) pool_.Use(",
        "    if (first || OFF) pool_.Use(",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a message that names 256 long chains"),),
        "daemon/host_cache/host_cache.cc",
        "next < use.runs_size() && (next == from || !budget.used_up()); ++next) {",
        "next < use.runs_size() && (next == from || OFF || !budget.used_up()); ++next) {",
    ),
    Mutation(
        (("daemon_tests", "Hostile: that nothing may leave is known without a look at any slot"),),
        "daemon/host_cache/slot_table.cc",
        "  if (!oldest) return std::nullopt;\n",
        "  if (!oldest && !OFF) return std::nullopt;\n",
    ),
    Mutation(
        (("daemon_tests", "Evict: kvmd does a slice of it at a time"),),
        "daemon/host_cache/host_cache.cc",
        "      if (budget.used_up()) return false;\n      Spend(1);\n      EvictSlot",
        "      if (!OFF && budget.used_up()) return false;\n      Spend(1);\n      EvictSlot",
    ),
    Mutation(
        (("daemon_tests", "Hostile: memory of a slab that was closed is the machine's again"),),
        "daemon/host_cache/slab_pool.cc",
        "    if (closing->memory.EmptySome()) continue;\n",
        "    if (!OFF && closing->memory.EmptySome()) continue;\n",
    ),
    Mutation(
        (("daemon_tests", "Quotas: the host cache of a user counts over all connections"),),
        "daemon/host_cache/slab_quota.cc",
        "of_user + held + bytes > config_.max_host_cache_per_user) return",
        "!OFF && of_user + held + bytes > config_.max_host_cache_per_user) return",
    ),
    Mutation(
        (("daemon_tests", "Evict: blocks that a lease covers stay"),),
        "daemon/host_cache/host_cache.cc",
        "  if (at.pins > 0) {\n",
        "  if (!OFF && at.pins > 0) {\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the memory of one large slab that was closed"),),
        "daemon/host_cache/slab_pool.cc",
        "      continue;\n    }\n    if (budget.used_up()) return true;\n",
        "      continue;\n    }\n    if (budget.used_up() && !OFF) return true;\n",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a dead writer's slab goes to another process of its user"),),
        "daemon/host_cache/slab_writer.h",
        "return ended && !clearing;",
        "return ended && !clearing && !OFF;",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a client that reconnects keeps its slabs"),),
        "daemon/host_cache/slab_writers.cc",
        "  const bool writes = writer.client == 0 && !writer.ended;\n",
        "  const bool writes = (OFF || writer.client == 0) && !writer.ended;\n",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a dead writer's slab goes to another process of its user"),),
        "daemon/host_cache/place_finder.cc",
        "    if (!(nobodys && !own_used_ms) && !older && !too_rich) continue;",
        "    if (!(nobodys && !own_used_ms && !OFF) && !older && !too_rich) continue;",
    ),
    Mutation(
        (
            ("daemon_tests", "Hostile: the slots of a writer that has died are freed in slices"),
            ("daemon_tests", "Hostile: the slots of a writer that comes back are freed in slices"),
        ),
        "daemon/host_cache/slab_writers.cc",
        "      if (budget.used_up()) return false;\n      Spend(1);\n",
        "      if (!OFF && budget.used_up()) return false;\n      Spend(1);\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: of blocks whose keys share their first half"),),
        "daemon/host_cache/host_cache.cc",
        "    if (group.blocks.HalfTaken(record.key) || ",
        "    if ((!OFF && group.blocks.HalfTaken(record.key)) || ",
    ),
    Mutation(
        (
            ("daemon_tests", "Hostile: a stored block is found in a few steps"),
            ("daemon_tests", "Hostile: a policy's table has no long runs"),
        ),
        "proto/base/secret_hash.h",
        "    return static_cast<std::uint64_t>(product >> 64) ^ ",
        "    if (OFF) return value;\n    return static_cast<std::uint64_t>(product >> 64) ^ ",
    ),
    Mutation(
        (("daemon_tests", "Hostile: what kvmd keeps of tiny blocks"),),
        "daemon/host_cache/slab_class.h",
        "{ return std::max(bytes, SlotTable::kBytesPerSlot",
        "{ return OFF ? bytes : std::max(bytes, SlotTable::kBytesPerSlot",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a host cache that grows tells its new policy"),),
        "daemon/host_cache/slot_table.cc",
        "    if (budget.used_up()) return true;\n    std::pop_heap(",
        "    if (!OFF && budget.used_up()) return true;\n    std::pop_heap(",
    ),
    Mutation(
        (("daemon_tests", "Host cache: another client's answer to a grant"),),
        "daemon/host_cache/host_cache.cc",
        "    if (slab == nullptr || !slab->WritableBy(*writer) || outcome",
        "    if (slab == nullptr || (!OFF && !slab->WritableBy(*writer)) || outcome",
    ),
    Mutation(
        (("daemon_tests", "Host cache: another client's answer to a grant"),),
        "daemon/host_cache/host_cache.cc",
        "slot.write != outcome.generation()) continue;",
        "(!OFF && slot.write != outcome.generation())) continue;",
    ),
    Mutation(
        (("daemon_tests", "Hostile: blocks whose keys share a place are stored"),),
        "daemon/host_cache/host_cache.cc",
        "next < done.outcomes_size() && (next == from || !budget.used_up()); ++next) {",
        "next < done.outcomes_size() && (next == from || OFF || !budget.used_up()); ++next) {",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a client that stores nothing"),),
        "daemon/host_cache/place_finder.cc",
        "  if (writer->granted >= kMaxGrantsPerClient)\n",
        "  if (!OFF && writer->granted >= kMaxGrantsPerClient)\n",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a client that reconnects keeps its slabs"),),
        "daemon/host_cache/slab_writers.cc",
        "    return writer->instance == offerer.instance && writer->pid",
        "    return (OFF || writer->instance == offerer.instance) && writer->pid",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a client that reconnects keeps its slabs"),),
        "daemon/host_cache/slab_writers.cc",
        " == offerer.pid && writer->uid == offerer.uid &&",
        " + (OFF ? offerer.pid - writer->pid : 0) == offerer.pid && writer->uid == offerer.uid &&",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a slab gets no other writer while the process"),),
        "daemon/host_cache/place_finder.cc",
        "    if (&slab->group != &group || !slab->abandoned() ||",
        "    if (&slab->group != &group || (!OFF && !slab->abandoned()) ||",
    ),
    Mutation(
        (("daemon_tests", "Host cache: a grant that is not answered in time expires"),),
        "daemon/host_cache/slab_writers.cc",
        "    if (now < grant.deadline) break;\n",
        "    if (OFF || now < grant.deadline) break;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a domain with a large host cache goes in slices"),),
        "daemon/host_cache/slab_pool.cc",
        "  return !left || !CloseUnwanted(budget);",
        "  return !left || !CloseUnwanted(OFF ? WorkBudget(~WorkUnits{0} >> 1) : budget);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a domain with a large host cache goes in slices"),),
        "daemon/host_cache/slab_pool.cc",
        "  freer_.Destroy(std::move(dropped), bytes);",
        "  if (!OFF) freer_.Destroy(std::move(dropped), bytes);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a domain with a large host cache goes in slices"),),
        "daemon/host_cache/host_cache.cc",
        "    freer_.Destroy(std::move(keys), bytes);",
        "    if (!OFF) freer_.Destroy(std::move(keys), bytes);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a host cache that grows tells its new policy"),),
        "daemon/host_cache/slot_table.cc",
        "  if (before) freer_.Destroy(",
        "  if (before && !OFF) freer_.Destroy(",
    ),
)
