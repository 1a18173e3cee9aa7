// Regions whose owner has gone: kept, given back to the process that was only away, given to the one that was
// restarted, given up.
#include <unistd.h>

#include <algorithm>
#include <limits>

#include "daemon/broker/broker.h"
#include "daemon/broker/grants.h"
#include "proto/base/fault_point.h"
#include "proto/base/memory_room.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

// Memory that goes with its owner waits so long for an owner that kvmd's restart has cut off.
constexpr std::chrono::seconds kMayBeAway{10};

}  // namespace

void Broker::HandleAllocateMemory(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::AllocateMemory& request = message.allocate_memory();
  const bool none = request.size_bytes_size() == 0 && !request.has_for_region();
  if (none || request.size_bytes_size() > static_cast<int>(kMaxFrameFds)) {
    return ReplyError(client, message.request_id(),
                      MakeError(Errc::kInvalidArgument, "memory: " + std::to_string(request.size_bytes_size()) + " pieces asked for, 1.." +
                                                            std::to_string(kMaxFrameFds) + " allowed"));
  }
  PendingReclaim pending;
  if (request.has_for_region()) {
    for (Region* orphan : client.domain->OrphansInTheWay(request.for_region(), client.credentials.uid))
      ReclaimFor(pending, *client.domain, *orphan, "another takes its place");
  }
  if (pending.regions.empty()) return ReplyMemory(client, message.request_id(), request, nullptr);
  pending.client = client.id;
  pending.request_id = message.request_id();
  pending.deadline = AckDeadline(request.ack_timeout_ms());
  pending.then = request;
  reclaims_.push_back(std::move(pending));
  CheckReclaims(std::chrono::steady_clock::now());
}

void Broker::ReplyMemory(Client& client, std::uint64_t request_id, const kvmwire::AllocateMemory& request,
                         const kvmwire::ReclaimReply* reclaimed) {
  std::vector<UniqueFd> made;
  std::vector<int> fds;
  std::uint64_t sum = 0;
  for (const std::uint64_t bytes : request.size_bytes()) {
    // None of it is allocated yet, so each piece alone might still fit.
    if (__builtin_add_overflow(sum, bytes, &sum)) sum = std::numeric_limits<std::uint64_t>::max();
  }
  if (Status fits = CheckMachineRoom(sum, "the bytes that " + client.name + " asks for"); !fits)
    return ReplyError(client, request_id, fits.error());
  for (const std::uint64_t bytes : request.size_bytes()) {
    const GrantRole role = made.empty() ? GrantRole::kGenerationTable : GrantRole::kPayload;
    Result<UniqueFd> fd = MakeGrant(role, client.credentials.uid, client.name, bytes);
    if (!fd) return ReplyError(client, request_id, fd.error());
    fds.push_back(fd->get());
    made.push_back(std::move(*fd));
  }
  kvmwire::ServerMessage reply;
  reply.set_request_id(request_id);
  if (reclaimed != nullptr) {
    *reply.mutable_reclaim_reply() = *reclaimed;
  } else {
    reply.mutable_empty();
  }
  client.connection->Send(reply, fds);
}

bool Broker::MakeOrphan(Domain& domain, Region& region, const std::shared_ptr<WatchedProcess>& process) {
  if (config_.orphan_ttl_s == 0 || config_.max_orphans == 0 || !region.outlives_owner()) return false;
  // It has ended in good order, and its word for that was lost or comes later: the generations say so as well.
  if (region.generations.all_ended()) return false;
  if (domain.orphans() >= config_.max_orphans) {
    // The limit stands: where leases hold the others, this one is not kept.
    Region* oldest = OldestOfTheDead(domain);
    if (oldest == nullptr && domain.leased_orphans() > 0) return false;
    if (oldest != nullptr) ReclaimOrphan(domain, *oldest, "too many (--max-orphans)");
  }
  domain.MakeOrphan(region, {std::chrono::steady_clock::now(), process});
  KVM_FAULT_POINT(kvmd_orphan_made);
  LogLimited(LogLevel::kInfo, "region_orphaned",
             {{"region", region.descriptor.name()},
              {"row", region.row},
              {"pid", region.info.owner_pid},
              {"blocks", region.entries},
              {"bytes", region.segment_bytes()}});
  MakeRoomForRegions(domain);
  return true;
}

// Those whose owner runs wait for it to come back after kvmd's restart, and those that leases hold for the leases' end.
Region* Broker::OldestOfTheDead(Domain& domain) {
  for (Region* region : domain.Orphans()) {
    if (region->pinned.empty() && region->orphan->process->Ended()) return region;
  }
  return nullptr;
}

Result<Region*> Broker::ResumeRegion(Client& client, const kvmwire::RegionDescriptor& descriptor, const std::vector<UniqueFd>& fds) {
  Region* region = client.domain->FindServingRegion(client.credentials.uid, descriptor.name());
  if (region == nullptr || !region->orphan || region->info.owner_pid != client.credentials.pid || client.credentials.pid == 0)
    return nullptr;
  // First whether it is whole: reading a hole fills it.
  if (fds.empty() || !region->whole() || region->generations.all_ended() || region->identity() != FileIdOf(fds[0].get()) ||
      region->descriptor.SerializeAsString() != descriptor.SerializeAsString()) {
    ReclaimOrphan(*client.domain, *region, "its owner registers another one");
    return nullptr;
  }
  const Status taken = client.domain->TakeOver(*region, {client.id, client.credentials.pid, client.credentials.uid});
  if (!taken) return taken.error();
  CutLeases(*client.domain, *region, "its owner is back");
  return region;
}

void Broker::HandleAdoptRegion(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::RegionDescriptor& expected = message.adopt_region().expected();
  const auto refuse = [&](const Error& error) { ReplyError(client, message.request_id(), error); };
  const std::string what = "adopt region " + expected.name() + ": ";
  Region* region = client.domain->FindServingRegion(client.credentials.uid, expected.name());
  if (region == nullptr) return refuse(MakeError(Errc::kNotFound, what + "there is none without an owner"));
  if (region->orphan && !region->whole()) {
    DropDamaged(*client.domain, *region);
    return refuse(MakeError(Errc::kNotFound, what + "there is a hole in its memory"));
  }
  const std::string pid = std::to_string(region->info.owner_pid);
  if (region->orphan && region->generations.all_ended())
    return refuse(MakeError(Errc::kNotFound, what + "process " + pid + " has given it up"));
  if (!region->orphan) return refuse(MakeError(Errc::kAlreadyExists, what + "it belongs to process " + pid));
  // A client that asks again has not heard that it was given the region: it is not writing it.
  const bool asks_again =
      client.instance != 0 && region->owner_instance == client.instance && region->info.owner_pid == client.credentials.pid;
  if (!asks_again && !region->orphan->process->known())
    return refuse(MakeError(Errc::kUnsupported, what + "kvmd can't see whether process " + pid + " has ended (another PID namespace?)"));
  // It would go on writing what its next owner publishes.
  if (!asks_again && !region->orphan->process->Ended())
    return refuse(MakeError(Errc::kUnavailable, what + "process " + pid + " has not ended"));
  if (std::any_of(rebuilds_.begin(), rebuilds_.end(), [&](const Rebuild& rebuild) { return rebuild.domain == client.domain->name(); }))
    return refuse(MakeError(Errc::kUnavailable, what + "kvmd is still reading what it holds"));
  if (!region->adoptable())
    return refuse(MakeError(Errc::kUnsupported, what + "its owner made it while kvmd was away, so nobody else can write it"));
  if (Status fits = CheckExpected(*region, expected); !fits) return refuse(fits.error());
  std::uint64_t records = 0;
  Result<OwnedMemory> list = client.domain->Records(*region, records);
  if (!list) return refuse(list.error());
  if (Status taken = client.domain->TakeOver(*region, {client.id, client.credentials.pid, client.credentials.uid}); !taken)
    return refuse(taken.error());
  // It may overwrite what it has now, without asking anybody.
  CutLeases(*client.domain, *region, "another process has adopted it");

  region->owner_instance = client.instance;
  KVM_FAULT_POINT(kvmd_adoption_taken);
  Persist(*client.domain, *region);
  KVM_FAULT_POINT(kvmd_adoption_persisted);
  kvmwire::ServerMessage message_out;
  message_out.set_request_id(message.request_id());
  kvmwire::AdoptRegionReply& reply = *message_out.mutable_adopt_region_reply();
  reply.set_region(region->row);
  reply.set_region_epoch(region->info.region_epoch);
  *reply.mutable_descriptor_() = region->descriptor;
  reply.set_records(records);
  std::vector<int> fds;
  fds.reserve(region->fds.size() + 1);
  for (const UniqueFd& fd : region->fds) fds.push_back(fd.get());
  fds.push_back(list->fd());
  if (!client.connection->TrySend(message_out, fds)) {
    // It does not know that the region is its own: it may ask again, as one that has not heard.
    MakeOrphan(*client.domain, *region, client.process);
    return refuse(MakeError(Errc::kResourceExhausted, what + "kvmd is out of descriptors"));
  }
  KVM_FAULT_POINT(kvmd_adoption_answered);
  LogLimited(LogLevel::kInfo, "region_adopted",
             {{"client", client.id},
              {"pid", client.credentials.pid},
              {"region", region->descriptor.name()},
              {"row", region->row},
              {"blocks", records}});
}

// ---- giving up ----------------------------------------------------------------------------------

void Broker::ReclaimOrphan(Domain& domain, Region& region, const char* why, bool wait_for_importers) {
  LogLimited(LogLevel::kInfo, "region_reclaimed",
             {{"region", region.descriptor.name()}, {"row", region.row}, {"bytes", region.segment_bytes()}, {"reason", why}});
  CutLeases(domain, region, why);
  Withdraw(domain, region, /*owner_died=*/!wait_for_importers);
}

void Broker::ReclaimFor(PendingReclaim& pending, Domain& domain, Region& region, const char* why) {
  pending.reply.set_regions(pending.reply.regions() + 1);
  pending.reply.set_blocks(pending.reply.blocks() + region.entries);
  pending.reply.set_bytes(pending.reply.bytes() + region.segment_bytes());
  pending.regions.push_back({domain.name(), region.row, region.info.region_epoch});
  ReclaimOrphan(domain, region, why, /*wait_for_importers=*/true);
}

void Broker::MakeRoomForRegions(Domain& domain) {
  if (domain.orphans() == 0 || !domain.nearly_full()) return;
  if (Region* oldest = OldestOfTheDead(domain)) ReclaimOrphan(domain, *oldest, "few regions are left (--max-regions)");
}

void Broker::ExpireOrphans(SteadyTime now) {
  for (const auto& [name, domain] : domains_) {
    if (domain->orphans() == 0) continue;
    for (Region* region : domain->Orphans()) {
      if (region->generations.all_ended()) {
        ReclaimOrphan(*domain, *region, "its owner has given it up");
        continue;
      }
      if (!region->pinned.empty()) continue;
      const bool kept = config_.orphan_ttl_s > 0 && region->outlives_owner();
      const auto age = now - region->orphan->since;
      if (kept && age >= std::chrono::seconds(config_.orphan_ttl_s)) {
        ReclaimOrphan(*domain, *region, "nobody came for it (--orphan-ttl-s)");
      } else if (!kept && (age >= kMayBeAway || region->orphan->process->Ended())) {
        ReclaimOrphan(*domain, *region, "its owner did not come back");
      }
    }
  }
}

void Broker::HandleReclaim(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::Reclaim& request = message.reclaim();
  if (!request.device_uuid().empty() && request.device_uuid().size() != sizeof(layout::RegionInfo::device_uuid))
    return ReplyError(client, message.request_id(), MakeError(Errc::kInvalidArgument, "reclaim: device_uuid is not 16 bytes"));
  const SteadyTime now = std::chrono::steady_clock::now();
  const std::uint32_t uid = client.credentials.uid;
  const bool rules_all = uid == 0 || uid == ::geteuid();
  PendingReclaim pending;
  pending.client = client.id;
  pending.request_id = message.request_id();
  pending.deadline = AckDeadline(request.ack_timeout_ms());
  for (const auto& [name, domain] : domains_) {
    if (!rules_all && domain.get() != client.domain) continue;
    for (Region* region : domain->Orphans()) {
      const layout::RegionInfo& info = region->info;
      const std::string_view device(reinterpret_cast<const char*>(info.device_uuid), sizeof(info.device_uuid));
      if (!request.name().empty() && request.name() != region->descriptor.name()) continue;
      if (!request.device_uuid().empty() && request.device_uuid() != device) continue;
      if (now - region->orphan->since < std::chrono::seconds(request.min_age_s())) continue;
      // Who needs memory of a device may have that of any dead worker of the domain; else each user has its own.
      if (!rules_all && info.owner_uid != uid && (client.role != kvmwire::WORKER || request.device_uuid().empty())) continue;
      if (!region->pinned.empty()) {
        if (!request.force() || (!rules_all && info.owner_uid != uid)) {
          pending.reply.set_leased(pending.reply.leased() + 1);
          continue;
        }
        pending.reply.set_leases_shrunk(pending.reply.leases_shrunk() + CutLeases(*domain, *region, "reclaimed by force"));
      }
      ReclaimFor(pending, *domain, *region, "asked for");
    }
  }
  reclaims_.push_back(std::move(pending));
  CheckReclaims(now);
}

// Answers those whose regions are gone, and those whose deadline has passed.
void Broker::CheckReclaims(SteadyTime now) {
  std::erase_if(reclaims_, [&](PendingReclaim& pending) {
    std::uint32_t left = 0;
    for (const PendingReclaim::Row& row : pending.regions) {
      const auto domain = domains_.find(row.domain);
      Region* region = domain == domains_.end() ? nullptr : domain->second->FindRegion(row.row, row.region_epoch);
      left += region != nullptr;
      if (region == nullptr || now < pending.deadline) continue;
      region->waiting_for.clear();
      work_to_do_();
    }
    if (left > 0 && now < pending.deadline) return false;
    const auto client = clients_.find(pending.client);
    if (client == clients_.end()) return true;
    pending.reply.set_still_mapped(left);
    if (pending.then) {
      ReplyMemory(*client->second, pending.request_id, *pending.then, &pending.reply);
      return true;
    }
    kvmwire::ServerMessage message;
    message.set_request_id(pending.request_id);
    *message.mutable_reclaim_reply() = pending.reply;
    client->second->connection->Send(message);
    return true;
  });
}

}  // namespace kvm::daemon
