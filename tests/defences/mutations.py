"""Defences, each with the change that takes it out and the tests that must fail then.

A change replaces one piece of a file, which has to occur there once. OFF in it stands for: this defence is left out.
Tests are named by their binary and the beginning of their sentence.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One defence: which tests fail when `old` of `file` is replaced by `new`."""

    tests: tuple[tuple[str, str], ...]
    file: str
    old: str
    new: str


MUTATIONS = (
    Mutation(
        (("memory_tests", "Host backend: a block rewritten in the middle of its copy is stale"),),
        "cuda/host/host_backend.cc",
        "return unchecked || generations.StillValid(block.source_block, block.generation)",
        "return unchecked || OFF || generations.StillValid(block.source_block, block.generation)",
    ),
    Mutation(
        (("daemon_tests", "kvmd regions: regions and entries of an owner that has gone"),),
        "daemon/broker/region_service.cc",
        "    if (region->live() && !orphans_.Keep(*client.domain, *region, client.process))\n      announcer_.Withdraw",
        "    if (region->live() && !orphans_.Keep(*client.domain, *region, client.process) && !OFF)\n      announcer_.Withdraw",
    ),
    Mutation(
        (("daemon_tests", "kvmd orphans: a dead worker's blocks are still found"),),
        "daemon/broker/orphan_policy.cc",
        "domain.config().max_orphans == 0 || !region.outlives_owner()) return false;",
        "domain.config().max_orphans == 0 || !region.outlives_owner() || OFF) return false;",
    ),
    Mutation(
        (("daemon_tests", "kvmd: when its process dies a client is removed"),),
        "daemon/server/session.cc",
        "  if (pidfd < 0) return;\n",
        "  if (pidfd < 0 || OFF) return;\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd orphans: never adopted while the process that writes it may run"),),
        "daemon/broker/orphan_service.cc",
        "if (!asks_again && !region->orphan->process->Ended()) return",
        "if (!OFF && !asks_again && !region->orphan->process->Ended()) return",
    ),
    Mutation(
        (("daemon_tests", "kvmd orphans: one whose process can't be watched"),),
        "daemon/broker/orphan_service.cc",
        "  if (!asks_again && !region->orphan->process->known())\n",
        "  if (!OFF && !asks_again && !region->orphan->process->known())\n",
    ),
    Mutation(
        (
            ("fault_tests", "kvmd death: after a restart everything published"),
            ("fault_tests", "Restart: an owner that survives"),
            ("fault_tests", "kvmd death: a restart under load"),
        ),
        "client/region/registrar.cc",
        "  connection_ = connection;\n  for (const std::shared_ptr<Region::Impl>& region : Regions()) Request(region, nullptr);\n",
        "  connection_ = connection;\n  for (const std::shared_ptr<Region::Impl>& region : Regions())\n    if (!OFF) Request(region, nullptr);\n",
    ),
    Mutation(
        (("fault_tests", "Restart: blocks of a worker that died meanwhile"),),
        "daemon/system/service_manager.cc",
        'if (has_store_) queue_->Send(user, "FDSTORE=1',
        'if (has_store_ && !OFF) queue_->Send(user, "FDSTORE=1',
    ),
    Mutation(
        (("fault_tests", "Host cache restart: blocks of a dead worker"),),
        "daemon/system/service_manager.cc",
        'if (has_store_) queue_->SendOwned(user, "FDSTORE=1',
        'if (has_store_ && !OFF) queue_->SendOwned(user, "FDSTORE=1',
    ),
    Mutation(
        (("client_tests", "Link: what another thread sends while the connection is being set up"),),
        "client/connection/link.cc",
        "if (greeter_ != std::thread::id() && greeter_ != std::this_thread::get_id()) return sent_meanwhile_",
        "if (!OFF && greeter_ != std::thread::id() && greeter_ != std::this_thread::get_id()) return sent_meanwhile_",
    ),
    Mutation(
        (
            ("proto_tests", "Shared memory: a forked child has none of its parent's writable mappings"),
            ("integration_tests", "Fork: a child can't write its parent's blocks"),
        ),
        "proto/shm/sealed_memory.cc",
        "if (mode == ipc::read_write && ::madvise(",
        "if (!OFF && mode == ipc::read_write && ::madvise(",
    ),
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
        (("daemon_tests", "Slot table: only blocks of the slabs that are named leave"),),
        "daemon/host_cache/slot_table.cc",
        "return slot != parent && slots_[slot].may_leave && among[PositionOf(slot)];",
        "return slot != parent && slots_[slot].may_leave && (OFF || among[PositionOf(slot)]);",
    ),
    Mutation(
        (("proto_tests", "Frames: a wrong mark is refused"),),
        "proto/wire/frame.cc",
        "if (header.mark != kFrameMark) return",
        "if (!OFF && header.mark != kFrameMark) return",
    ),
    Mutation(
        (("proto_tests", "Frames: a payload over the limit is refused"),),
        "proto/wire/frame.cc",
        "if (header.payload_bytes > kMaxFrameBytes) {",
        "if (!OFF && header.payload_bytes > kMaxFrameBytes) {",
    ),
    Mutation(
        (("proto_tests", "Frames: fewer descriptors than announced are refused"),),
        "proto/wire/frame.cc",
        "} else if (frame.fds.size() < header.fd_count) {",
        "} else if (!OFF && frame.fds.size() < header.fd_count) {",
    ),
    Mutation(
        (("proto_tests", "Frames: descriptors piled up without a frame end the connection"),),
        "proto/wire/frame.cc",
        "if (fds_.size() > 2 * kMaxFrameFds) return",
        "if (!OFF && fds_.size() > 2 * kMaxFrameFds) return",
    ),
    Mutation(
        (("daemon_tests", "kvmd: clients that stall before the hello or inside a frame"),),
        "daemon/server/session.cc",
        "return !paused_ && !backlog_ && frame_began_ < now &&",
        "return !OFF && !paused_ && !backlog_ && frame_began_ < now &&",
    ),
    Mutation(
        (("daemon_tests", "kvmd: a connection above the user's limit is told the option"),),
        "daemon/server/connection_quota.cc",
        "user != of_user_.end() && user->second >= per_user_)",
        "!OFF && user != of_user_.end() && user->second >= per_user_)",
    ),
    Mutation(
        (("daemon_tests", "Registry: regions are refused with the reason named"),),
        "daemon/registry/region.cc",
        "  if (Status valid = geometry.Validate(*segment_bytes); !valid) return valid.error();\n",
        "  if (Status valid = geometry.Validate(*segment_bytes); !valid && !OFF) return valid.error();\n",
    ),
    Mutation(
        (
            ("daemon_tests", "Domains: the kernel's user and group decide"),
            ("integration_tests", "Sharing: another user's worker shares no block"),
        ),
        "daemon/broker/domain_table.cc",
        'return "uid-" + std::to_string(credentials.uid);',
        'return "uid-" + std::to_string(OFF ? 0 : credentials.uid);',
    ),
    Mutation(
        (("daemon_tests", "kvmd memory: one region's table or segment is no other region's"),),
        "daemon/registry/region_table.cc",
        "    if (found == row_of_memory_.end()) continue;\n",
        "    if (found == row_of_memory_.end() || OFF) continue;\n",
    ),
    Mutation(
        (("proto_tests", "Frames: no more descriptors are in flight than may be"),),
        "proto/wire/frame.cc",
        "if (fds == 0 || fds_in_flight_ == 0 ||",
        "if (fds == 0 || OFF || fds_in_flight_ == 0 ||",
    ),
    Mutation(
        (("proto_tests", "Frames: descriptors beyond the kernel's limit for this user stay queued"),),
        "proto/wire/frame.cc",
        "if (errno == ETOOMANYREFS) {",
        "if (!OFF && errno == ETOOMANYREFS) {",
    ),
    Mutation(
        (("proto_tests", "Frames: a reader that is out of descriptors reports it with its limit"),),
        "proto/wire/frame.cc",
        "if (message.msg_flags & MSG_CTRUNC) {",
        "if (!OFF && (message.msg_flags & MSG_CTRUNC)) {",
    ),
    Mutation(
        (("daemon_tests", "Quotas: blocks and descriptors of a user count over all connections"),),
        "daemon/registry/accounts.cc",
        "  if (user.blocks + blocks > BlocksPerUser(config_))\n    return Exhausted",
        "  if (!OFF && user.blocks + blocks > BlocksPerUser(config_))\n    return Exhausted",
    ),
    Mutation(
        (("daemon_tests", "Quotas: memory that waits for its client"),),
        "daemon/broker/orphan_service.cc",
        "static_cast<std::uint64_t>(request.size_bytes_size())); !allowed)",
        "static_cast<std::uint64_t>(request.size_bytes_size())); !OFF && !allowed)",
    ),
    Mutation(
        (("daemon_tests", "Registry: all domains together keep no more descriptors"),),
        "daemon/registry/descriptor_quota.cc",
        "if (kept_ + more > max_) return",
        "if (!OFF && kept_ + more > max_) return",
    ),
    Mutation(
        (("daemon_tests", "Turns: a user with one task waits for one turn"),),
        "daemon/server/fair_turns.cc",
        "      order_.push_back(id);",
        "      OFF ? order_.push_front(id) : order_.push_back(id);",
    ),
    Mutation(
        (("daemon_tests", "Turns: a debt makes its user pass"),),
        "daemon/server/fair_turns.cc",
        "user.credit = std::min(user.credit + kTurn, kTurn);",
        "user.credit = OFF ? kTurn : std::min(user.credit + kTurn, kTurn);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: publishes whose keys share a place are cut"),),
        "daemon/registry/entry_table.cc",
        "  for (; i < count && (i == from || !budget.used_up()); ++i) {",
        "  for (; i < count && (i == from || OFF || !budget.used_up()); ++i) {",
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
        (("daemon_tests", "Hostile: memory of 129 pieces a message"),),
        "daemon/broker/orphan_service.cc",
        "    Spend(kNewMemoryUnits);\n",
        "    if (!OFF) Spend(kNewMemoryUnits);\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a region of many segments is announced to many clients in slices"),),
        "daemon/broker/region_announcer.cc",
        "    if (budget.used_up()) {\n      behind_.insert(client.id);",
        "    if (!OFF && budget.used_up()) {\n      behind_.insert(client.id);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the records of a huge adopted region"),),
        "daemon/registry/entry_table.cc",
        "    if (budget.used_up()) return false;\n    Spend(1);\n    if (block + kAhead",
        "    if (!OFF && budget.used_up()) return false;\n    Spend(1);\n    if (block + kAhead",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the blocks of a long lease"),),
        "daemon/broker/lessor.cc",
        "      if (budget.used_up()) return true;\n      Spend(2);\n",
        "      if (!OFF && budget.used_up()) return true;\n      Spend(2);\n",
    ),
    Mutation(
        (("daemon_tests", "Evict: kvmd does a slice of it at a time"),),
        "daemon/host_cache/host_cache.cc",
        "      if (budget.used_up()) return false;\n      Spend(1);\n      EvictSlot",
        "      if (!OFF && budget.used_up()) return false;\n      Spend(1);\n      EvictSlot",
    ),
    Mutation(
        (("daemon_tests", "Notify queue: what the service manager does not take waits"),),
        "daemon/system/notify_queue.cc",
        "      full_ = true;\n      return Outcome::kFull;",
        "      full_ = true;\n      return OFF ? Outcome::kSent : Outcome::kFull;",
    ),
    Mutation(
        (("daemon_tests", "Notify queue: a user with one message does not wait"),),
        "daemon/system/notify_queue.cc",
        "    next_ = lane->first == kOwnLane ? next_ : lane->first + 1;\n",
        "    next_ = OFF ? 0 : lane->first == kOwnLane ? next_ : lane->first + 1;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: regions that come and go"),),
        "daemon/system/notify_queue.cc",
        "  if (found == lanes_.end()) return false;\n",
        "  if (found == lanes_.end() || OFF) return false;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a slab is granted once the store knows its writer"),),
        "daemon/broker/persistence.cc",
        "  if (store_ == nullptr) return then();\n",
        "  if (store_ == nullptr || OFF) return then();\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: what a user's connections leave unread together"),),
        "daemon/server/session.cc",
        "  return !grown || !loads_.TooManyBytes(credentials_.uid);\n",
        "  return !grown || OFF || !loads_.TooManyBytes(credentials_.uid);\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: a client that sends and does not read"),),
        "daemon/server/session.cc",
        "return KeptWaiting() || writer_.queued_bytes() > kPauseBytes ||",
        "return KeptWaiting() || (!OFF && writer_.queued_bytes() > kPauseBytes) ||",
    ),
    Mutation(
        (("daemon_tests", "Quotas: granted memory counts until no process can write it"),),
        "daemon/registry/granted_memory.cc",
        "  if (MayBeWritten(grant->second.watch.get())) return false;\n",
        "  if (!OFF && MayBeWritten(grant->second.watch.get())) return false;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: memory of a slab that was closed is the machine's again"),),
        "daemon/host_cache/slab_pool.cc",
        "    if (closing->memory.EmptySome()) continue;\n",
        "    if (!OFF && closing->memory.EmptySome()) continue;\n",
    ),
    Mutation(
        (("daemon_tests", "Client totals: more pairs than a report may have"),),
        "daemon/broker/broker.cc",
        "  if (report.traffic_size() > static_cast<int>(kMaxTrafficPairs))\n",
        "  if (!OFF && report.traffic_size() > static_cast<int>(kMaxTrafficPairs))\n",
    ),
    Mutation(
        (("daemon_tests", "Client totals: however many devices clients name"),),
        "daemon/broker/client_totals.cc",
        "      if (totals.traffic_size() >= static_cast<int>(kMaxDomainTrafficPairs)) continue;\n",
        "      if (!OFF && totals.traffic_size() >= static_cast<int>(kMaxDomainTrafficPairs)) continue;\n",
    ),
    Mutation(
        (("daemon_tests", "kvmd: domains are made as users connect"),),
        "daemon/broker/domain_table.cc",
        "if (domains_.size() + making_.size() >= config_.max_domains &&",
        "if (!OFF && domains_.size() + making_.size() >= config_.max_domains &&",
    ),
    Mutation(
        (("daemon_tests", "Quotas: the host cache of a user counts over all connections"),),
        "daemon/host_cache/slab_quota.cc",
        "of_user + held + bytes > config_.max_host_cache_per_user) return",
        "!OFF && of_user + held + bytes > config_.max_host_cache_per_user) return",
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
        (("daemon_tests", "Orphans: another user's are freed only for a worker that needs the device's memory"),),
        "daemon/broker/orphan_policy.cc",
        "  if (!own && (!claimant.is_worker || !is_old || request.device_uuid().empty())) return Claim::kNo;\n",
        "  if (!OFF && !own && (!claimant.is_worker || !is_old || request.device_uuid().empty())) return Claim::kNo;\n",
    ),
    Mutation(
        (("daemon_tests", "Evict: admins may, of all domains or of theirs"),),
        "daemon/broker/evict_service.cc",
        "  if (!Administers(config_, *client.domain, uid))\n",
        "  if (!OFF && !Administers(config_, *client.domain, uid))\n",
    ),
    Mutation(
        (("daemon_tests", "Evict: blocks that a lease covers stay"),),
        "daemon/host_cache/host_cache.cc",
        "  if (at.pins > 0) {\n",
        "  if (!OFF && at.pins > 0) {\n",
    ),
    Mutation(
        (("kvctl_tests", "Status page: what clients call themselves"),),
        "client/kvctl/page/page_tables.cc",
        "std::string Text(const std::string& of_client) { return EscapeHtml(Printable(of_client)); }",
        "std::string Text(const std::string& of_client) { return OFF ? Printable(of_client) : EscapeHtml(Printable(of_client)); }",
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: other paths, methods and bytes"),),
        "client/kvctl/exporter/http_server.cc",
        '    if (!found->security_policy.empty()) response.set("Content-Security-Policy", found->security_policy);\n',
        '    if (!OFF && !found->security_policy.empty()) response.set("Content-Security-Policy", found->security_policy);\n',
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: its page names keys to those who may open its socket"),),
        "client/kvctl/exporter/exporter.cc",
        "by_tcp ? Keys::kHidden : Keys::kShown",
        "by_tcp && !OFF ? Keys::kHidden : Keys::kShown",
    ),
    Mutation(
        (
            ("kvctl_live_tests", "Exporter: over TCP a foreign page's host name"),
            ("kvctl_live_tests", "Exporter: over its socket, which a port may be forwarded to"),
        ),
        "client/kvctl/exporter/exporter.cc",
        "return (!by_tcp && host.find('.') == host.npos) ||",
        "return OFF || (!by_tcp && host.find('.') == host.npos) ||",
    ),
    Mutation(
        (("daemon_tests", "Monitor: a user's sees that user's domain, root's sees all"),),
        "daemon/broker/status.cc",
        "return sees_all_ || &domain == own_;",
        "return sees_all_ || OFF || &domain == own_;",
    ),
    Mutation(
        (("daemon_tests", "Log sink: a pipe without a reader stops no writer"),),
        "daemon/system/log_sink.cc",
        "  if (at_once_) return WriteAll(state_->fd, line);\n",
        "  if (at_once_ || OFF) return WriteAll(state_->fd, line);\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a status of many clients is made in slices"),),
        "daemon/broker/status.cc",
        "  while (const Client* client = query_.clients() ? sources_.clients.After(client_) : nullptr) {\n    if (budget.used_up())",
        "  while (const Client* client = query_.clients() ? sources_.clients.After(client_) : nullptr) {\n    if (!OFF && budget.used_up())",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the end of regions that many clients know is told in slices"),),
        "daemon/broker/region_announcer.cc",
        "if (telling_.empty() && !budget.used_up()) {",
        "if (OFF || (telling_.empty() && !budget.used_up())) {",
    ),
    Mutation(
        (("daemon_tests", "Hostile: leases of a region that many leases cover lose its blocks in slices"),),
        "daemon/broker/lessor.cc",
        "      if (budget.used_up()) return true;\n      Spend(4);",
        "      if (!OFF && budget.used_up()) return true;\n      Spend(4);",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the memory of a new domain is made in slices"),),
        "daemon/registry/registry_segment.cc",
        "    if (budget.used_up()) return false;\n",
        "    if (!OFF && budget.used_up()) return false;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a domain that kvmd lacks the memory for in the middle is an error"),),
        "daemon/broker/broker.cc",
        "      its.dropped = domain.error();\n",
        "      if (!OFF) its.dropped = domain.error();\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a client that does not wait for its domain"),),
        "daemon/broker/domain_table.cc",
        "!DropUnused() && !DropIdle()) {",
        "(OFF || !DropUnused()) && !DropIdle()) {",
    ),
    Mutation(
        (("daemon_tests", "Leases: limits are errors that name the option"),),
        "daemon/broker/lessor.cc",
        "if (user != of_user_.end() && user->second >= LeasesPerUser(config_))",
        "if (!OFF && user != of_user_.end() && user->second >= LeasesPerUser(config_))",
    ),
    Mutation(
        (("kvctl_live_tests", "Exporter: as many connections as there may be"),),
        "client/kvctl/exporter/http_server.cc",
        "if (all_.connections_.size() >= kMaxConnections) all_.connections_.front()->End();",
        "if (all_.connections_.size() >= kMaxConnections) {\n        if (OFF) {\n          listed_ = false;\n          stream_.close();\n          return;\n        }\n        all_.connections_.front()->End();\n      }",
    ),
    Mutation(
        (("daemon_tests", "kvmd: two thousand quick connects leave no client"),),
        "daemon/server/server.cc",
        "    quota.Remove(uid);\n    sessions.erase(id);",
        "    if (!OFF) quota.Remove(uid);\n    sessions.erase(id);",
    ),
    Mutation(
        (("daemon_tests", "Registry: a full table of regions refuses the next one"),),
        "daemon/registry/region_table.cc",
        "if (tried == regions_.size()) return Exhausted(",
        'if (tried == regions_.size()) return OFF ? MakeError(Errc::kSystem, "no row") : Exhausted(',
    ),
    Mutation(
        (("proto_tests", "Model spec: a difference names exactly the field that differs"),),
        "proto/model/model_spec.cc",
        "    if (a != b) out.push_back({",
        "    if (a != b && !OFF) out.push_back({",
    ),
    Mutation(
        (
            ("mesh_tests", "Mesh configuration: names that are missing"),
            ("mesh_membership_tests", "etcd entry: anything else is refused"),
        ),
        "client/mesh/membership/member.cc",
        "&& name != kDiskName &&",
        "&& (OFF || name != kDiskName) &&",
    ),
    Mutation(
        (("mesh_integration_tests", "Mesh: workers' connections that say nothing"),),
        "client/mesh/node/worker_service.cc",
        "  const WaitingChannels::Entry waits(waiting_, channel);\n",
        "  WaitingChannels nobody(1);\n  const WaitingChannels::Entry waits(OFF ? nobody : waiting_, channel);\n",
    ),
    Mutation(
        (("daemon_lack_tests", "kvmd lack of memory: whichever allocation fails"),),
        "daemon/server/server.cc",
        "  if (failed) std::rethrow_exception(failed);",
        "  if (failed && !OFF) std::rethrow_exception(failed);",
    ),
    Mutation(
        (("exporter_lack_tests", "Exporter lack of memory: whichever allocation fails"),),
        "client/kvctl/exporter/http_server.cc",
        "if (failed) std::rethrow_exception(failed);",
        "if (failed && !OFF) std::rethrow_exception(failed);",
    ),
    Mutation(
        (("client_tests", "Link: a lack of memory on its thread"),),
        "client/connection/link.cc",
        "    Attempt([&] { why = ServeOne(); });\n",
        "    if (OFF) why = ServeOne();\n    if (!OFF) Attempt([&] { why = ServeOne(); });\n",
    ),
    Mutation(
        (("client_tests", "Link: a task that lacks memory ends alone"),),
        "client/connection/task_thread.cc",
        "    Attempt(task);\n",
        "    if (OFF) task();\n    if (!OFF) Attempt(task);\n",
    ),
    Mutation(
        (("client_lack_tests", "Client lack of memory: whichever allocation of the offloader's thread"),),
        "client/offload/offloader.cc",
        "    if (source) Attempt([&] { storer_.Process(*source, batch); });\n",
        "    if (source && OFF) storer_.Process(*source, batch);\n    if (source && !OFF) Attempt([&] { storer_.Process(*source, batch); });\n",
    ),
    Mutation(
        (("client_lack_tests", "Client lack of memory: a message whose allocation fails"),),
        "proto/wire/frame.cc",
        "  first.reserve(first.size() + sizeof(header) + payload.size());\n",
        "  if (!OFF) first.reserve(first.size() + sizeof(header) + payload.size());\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the memory of a domain that is dropped is passed on"),),
        "daemon/broker/domain_table.cc",
        "    OwnedMemory memory = std::move(domain->second->segment()).TakeMemory();\n",
        "    OwnedMemory memory;\n    if (!OFF) memory = std::move(domain->second->segment()).TakeMemory();\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: the memory of one large slab that was closed"),),
        "daemon/host_cache/slab_pool.cc",
        "    if (budget.used_up()) return true;\n    if (closing->memory.EmptySome()) continue;\n",
        "    if (budget.used_up() && !OFF) return true;\n    if (closing->memory.EmptySome()) continue;\n",
    ),
    Mutation(
        (("daemon_tests", "Hostile: a new domain for which there is no room waits for memory"),),
        "daemon/broker/domain_table.cc",
        "    if (!segment && memory_freer_.freeing()) return nullptr;\n",
        "    if (!segment && memory_freer_.freeing() && !OFF) return nullptr;\n",
    ),
    Mutation(
        (("mesh_lack_tests", "Mesh lack of memory: whichever allocation fails, what is to run"),),
        "client/mesh/threads/keep_running.cc",
        "    if (each->run_.expired()) each->Run();\n",
        "    if (!OFF && each->run_.expired()) each->Run();\n",
    ),
    Mutation(
        (
            ("mesh_fault_tests", "Mesh: a block whose bytes do not have its checksum"),
            ("mesh_fault_tests", "Mesh: of blocks in one answer"),
        ),
        "client/mesh/node/arriving_blocks.h",
        "std::size_t good = 0;",
        "std::size_t good = OFF ? size() : 0;",
    ),
    Mutation(
        (("mesh_fault_tests", "Mesh disk: records that are damaged while peers are served"),),
        "client/mesh/disk/disk_reader.cc",
        "  return unchecked || BlockChecksum(",
        "  return OFF || unchecked || BlockChecksum(",
    ),
    Mutation(
        (
            ("mesh_fault_tests", "Mesh: a block under another key"),
            ("mesh_fault_tests", "Mesh: an answer whose blocks are not as many as it says"),
        ),
        "client/mesh/node/peer.cc",
        "  if (blocks.keys() != EncodeKeys(",
        "  if (!OFF && blocks.keys() != EncodeKeys(",
    ),
    Mutation(
        (("mesh_tests", "Mesh worker socket: a client waits while its queue is full"),),
        "proto/mesh/mesh_request.cc",
        "    if (errno != EAGAIN) {\n      Error error",
        "    if (OFF || errno != EAGAIN) {\n      Error error",
    ),
)
