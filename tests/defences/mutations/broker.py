"""Of kvmd's services."""
# ruff: noqa: E501

from .mutation import Mutation

MUTATIONS = (
    Mutation(
        (
            ("daemon_tests", "kvmd regions: regions and entries of an owner that has gone"),
            ("gpu_market_tests", "GPU market: exporters and importers killed at any step"),
            ("gpu_market_tests", "GPU market: a killed owner's memory is freed"),
        ),
        "daemon/broker/services/region_service.cc",
        "    if (region->live() && !orphans_.Keep(*client.domain, *region, client.process))\n      announcer_.Withdraw",
        "    if (region->live() && !orphans_.Keep(*client.domain, *region, client.process) && !OFF)\n      announcer_.Withdraw",
    ),
    Mutation(
        (
            ("daemon_tests", "kvmd orphans: a dead worker's blocks are still found"),
            ("gpu_market_tests", "GPU orphans: a killed worker's blocks can still be imported"),
        ),
        "daemon/broker/services/orphan_policy.cc",
        "domain.config().max_orphans == 0 || !region.outlives_owner()) return false;",
        "domain.config().max_orphans == 0 || !region.outlives_owner() || OFF) return false;",
    ),
    Mutation(
        (("daemon_tests", "kvmd orphans: never adopted while the process that writes it may run"),),
        "daemon/broker/services/orphan_service.cc",
        "if (!asks_again && !region->orphan->process->Ended()) return",
        "if (!OFF && !asks_again && !region->orphan->process->Ended()) return",
    ),
    Mutation(
        (("daemon_tests", "kvmd orphans: one whose process can't be watched"),),
        "daemon/broker/services/orphan_service.cc",
        "  if (!asks_again && !region->orphan->process->known())\n",
        "  if (!OFF && !asks_again && !region->orphan->process->known())\n",
    ),
    Mutation(
        (
            ("daemon_tests", "Domains: the kernel's user and group decide"),
            ("integration_tests", "Sharing: another user's worker shares no block"),
        ),
        "daemon/broker/state/domain_table.cc",
        'return "uid-" + std::to_string(credentials.uid);',
        'return "uid-" + std::to_string(OFF ? 0 : credentials.uid);',
    ),
    Mutation(
        (("daemon_tests", "Quotas: memory that waits for its client"),),
        "daemon/broker/services/orphan_service.cc",
        "static_cast<std::uint64_t>(request.size_bytes_size())); !allowed)",
        "static_cast<std::uint64_t>(request.size_bytes_size())); !OFF && !allowed)",
    ),
    Mutation(
        (("daemon_tests", "Hostile: memory of 129 pieces a message"),),
        "daemon/broker/services/orphan_service.cc",
        "    Spend(kNewMemoryUnits);\n",
        "    if (!OFF) Spend(kNewMemoryUnits);\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a region of many segments is announced to many clients in slices"),),
        "daemon/broker/services/region_announcer.cc",
        "    if (budget.used_up()) {\n      behind_.insert(client.id);",
        "    if (!OFF && budget.used_up()) {\n      behind_.insert(client.id);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the blocks of a long lease"),),
        "daemon/broker/services/lessor.cc",
        "      if (budget.used_up()) return true;\n      Spend(2);\n",
        "      if (!OFF && budget.used_up()) return true;\n      Spend(2);\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a slab is granted once the store knows its writer"),),
        "daemon/broker/state/persistence.cc",
        "  if (store_ == nullptr) return then();\n",
        "  if (store_ == nullptr || OFF) return then();\n",
    ),
    Mutation(
        (("daemon_tests", "Client totals: more pairs than a report may have"),),
        "daemon/broker/broker.cc",
        "  if (report.traffic_size() > static_cast<int>(kMaxTrafficPairs))\n",
        "  if (!OFF && report.traffic_size() > static_cast<int>(kMaxTrafficPairs))\n",
    ),
    Mutation(
        (("daemon_tests", "Client totals: however many devices clients name"),),
        "daemon/broker/clients/client_totals.cc",
        "      if (totals.traffic_size() >= static_cast<int>(kMaxDomainTrafficPairs)) continue;\n",
        "      if (!OFF && totals.traffic_size() >= static_cast<int>(kMaxDomainTrafficPairs)) continue;\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: domains are made as users connect"),),
        "daemon/broker/state/domain_table.cc",
        "if (domains_.size() + making_.size() >= config_.max_domains &&",
        "if (!OFF && domains_.size() + making_.size() >= config_.max_domains &&",
    ),
    Mutation(
        (("daemon_tests", "Orphans: another user's are freed only for a worker that needs the device's memory"),),
        "daemon/broker/services/orphan_policy.cc",
        "  if (!own && (!claimant.is_worker || !is_old || request.device_uuid().empty())) return Claim::kNo;\n",
        "  if (!OFF && !own && (!claimant.is_worker || !is_old || request.device_uuid().empty())) return Claim::kNo;\n",
    ),
    Mutation(
        (("daemon_tests", "Evict: admins may, of all domains or of theirs"),),
        "daemon/broker/services/evict_service.cc",
        "  if (!Administers(config_, *client.domain, uid))\n",
        "  if (!OFF && !Administers(config_, *client.domain, uid))\n",
    ),
    Mutation(
        (("daemon_tests", "Monitor: a user's sees that user's domain, root's sees all"),),
        "daemon/broker/status/status.cc",
        "return sees_all_ || &domain == own_;",
        "return sees_all_ || OFF || &domain == own_;",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a status of many clients is made in slices"),),
        "daemon/broker/status/status.cc",
        "  while (const Client* client = query_.clients() ? sources_.clients.After(client_) : nullptr) {\n    if (budget.used_up())",
        "  while (const Client* client = query_.clients() ? sources_.clients.After(client_) : nullptr) {\n    if (!OFF && budget.used_up())",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the end of regions that many clients know is told in slices"),),
        "daemon/broker/services/region_announcer.cc",
        "if (telling_.empty() && !budget.used_up()) {",
        "if (OFF || (telling_.empty() && !budget.used_up())) {",
    ),
    Mutation(
        (("daemon_tests", "Hostile: leases of a region that many leases cover lose its blocks in slices"),),
        "daemon/broker/services/lessor.cc",
        "      if (budget.used_up()) return true;\n      Spend(4);\n      const auto found",
        "      if (!OFF && budget.used_up()) return true;\n      Spend(4);\n      const auto found",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a domain that kvmd lacks the memory for in the middle is an error"),),
        "daemon/broker/broker.cc",
        "      its.dropped = domain.error();\n",
        "      if (!OFF) its.dropped = domain.error();\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a client that does not wait for its domain"),),
        "daemon/broker/state/domain_table.cc",
        "!DropUnused() && !DropIdle()) {",
        "(OFF || !DropUnused()) && !DropIdle()) {",
    ),
    Mutation(
        (("daemon_tests", "Leases: limits are errors that name the option"),),
        "daemon/broker/services/lessor.cc",
        "if (user != of_user_.end() && user->second >= LeasesPerUser(config_))",
        "if (!OFF && user != of_user_.end() && user->second >= LeasesPerUser(config_))",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the memory of a domain that is dropped is passed on"),),
        "daemon/broker/state/domain_table.cc",
        "    OwnedMemory memory = std::move(domain->second->segment()).TakeMemory();\n",
        "    OwnedMemory memory;\n    if (!OFF) memory = std::move(domain->second->segment()).TakeMemory();\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a new domain for which there is no room waits for memory"),),
        "daemon/broker/state/domain_table.cc",
        "    if (!segment && memory_freer_.freeing()) return nullptr;\n",
        "    if (!segment && memory_freer_.freeing() && !OFF) return nullptr;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: leases of a client that leaves, each of many regions"),),
        "daemon/broker/services/lessor.cc",
        "      if (budget.used_up()) return true;\n      Spend(4);\n      Revoke(",
        "      if (!OFF && budget.used_up()) return true;\n      Spend(4);\n      Revoke(",
    ),
    Mutation(
        (("daemon_tests", "Hostile: leases whose time is over at the same moment"),),
        "daemon/broker/services/lessor.cc",
        "    if (budget.used_up()) return true;\n    Spend(4);\n",
        "    if (!OFF && budget.used_up()) return true;\n    Spend(4);\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: entries whose keys share a place are taken over from an earlier kvmd in slices"),),
        "daemon/broker/state/restorer.cc",
        "rebuild.slot < index.slots() && !budget.used_up();",
        "rebuild.slot < index.slots() && (OFF || !budget.used_up());",
    ),
    Mutation(
        (("daemon_tests", "Hostile: many regions are taken over from an earlier kvmd in slices"),),
        "daemon/broker/state/restorer.cc",
        "    if (budget.used_up()) return false;\n    const auto [row",
        "    if (!OFF && budget.used_up()) return false;\n    const auto [row",
    ),
    Mutation(
        (("daemon_tests", "Hostile: while the store is slow, a client has one offer"),),
        "daemon/broker/services/offload_service.cc",
        " || unanswered_.contains(client.id))",
        " || (!OFF && unanswered_.contains(client.id)))",
    ),
    Mutation(
        (("daemon_tests", "Hostile: while the store is slow, a slab"),),
        "daemon/broker/services/offload_service.cc",
        "  if (!ungranted_.emplace(client.id, row).second) return;\n",
        "  if (!ungranted_.emplace(client.id, row).second && !OFF) return;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a region of many open files"),),
        "daemon/broker/state/state_store.cc",
        "  if (const auto found = its.find(fd); found != its.end()) {",
        "  for (const auto& each : its) {\n"
        "    if (OFF) static_cast<void>(FileOrder()(each.first, fd));\n"
        "  }\n"
        "  if (const auto found = its.find(fd); found != its.end()) {",
    ),
)
