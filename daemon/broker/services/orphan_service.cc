#include "daemon/broker/services/orphan_service.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "daemon/broker/services/admins.h"
#include "daemon/broker/services/damage.h"
#include "daemon/broker/services/grants.h"
#include "daemon/system/log.h"
#include "proto/base/fault_point.h"
#include "proto/base/memory_room.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {

void OrphanService::AllocateMemory(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::AllocateMemory& request = message.allocate_memory();
  const bool none = request.size_bytes_size() == 0 && !request.has_for_region();
  if (none || request.size_bytes_size() > static_cast<int>(kMaxFrameFds)) {
    return client.ReplyError(message.request_id(),
                             MakeError(Errc::kInvalidArgument, "memory: " + std::to_string(request.size_bytes_size()) +
                                                                   " pieces asked for, 1.." + std::to_string(kMaxFrameFds) + " allowed"));
  }
  Waiting waiting;
  if (request.has_for_region()) {
    for (Region* orphan : client.domain->OrphansInTheWay(request.for_region(), client.credentials.uid))
      GiveUpFor(waiting, *client.domain, *orphan, "another takes its place");
  }
  if (waiting.regions.empty()) return ReplyMemory(client, message.request_id(), request, nullptr);
  waiting.client = client.id;
  waiting.request_id = message.request_id();
  waiting.deadline = announcer_.AckDeadline(request.ack_timeout_ms());
  waiting.then = request;
  waiting_.push_back(std::move(waiting));
  static_cast<void>(AnswerWaiting(std::chrono::steady_clock::now()));
}

void OrphanService::ReplyMemory(Client& client, std::uint64_t request_id, const kvmwire::AllocateMemory& request,
                                const kvmwire::ReclaimReply* reclaimed) {
  std::vector<UniqueFd> made;
  std::vector<int> fds;
  std::uint64_t sum = 0;
  for (const std::uint64_t bytes : request.size_bytes()) {
    // None of it is allocated yet, so each piece alone might still fit.
    if (__builtin_add_overflow(sum, bytes, &sum)) sum = std::numeric_limits<std::uint64_t>::max();
  }
  const std::uint32_t uid = client.credentials.uid;
  GrantedMemory& granted = domains_.granted();
  if (Status allowed = client.domain->CheckUserDescriptors(uid, static_cast<std::uint64_t>(request.size_bytes_size())); !allowed)
    return client.ReplyError(request_id, allowed.error());
  if (Status fits = CheckMachineRoom(sum, "the bytes that " + client.name + " asks for"); !fits)
    return client.ReplyError(request_id, fits.error());
  if (Status allowed = granted.Check(uid, sum); !allowed) return client.ReplyError(request_id, allowed.error());
  for (const std::uint64_t bytes : request.size_bytes()) {
    const GrantRole role = made.empty() ? GrantRole::kGenerationTable : GrantRole::kPayload;
    Spend(kNewMemoryUnits);
    Result<UniqueFd> fd = MakeGrant(role, uid, client.name, bytes);
    if (!fd) return client.ReplyError(request_id, fd.error());
    if (Status watched = granted.Add(uid, fd->get(), bytes); !watched) return client.ReplyError(request_id, watched.error());
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

bool OrphanService::Keep(Domain& domain, Region& region, const std::shared_ptr<WatchedProcess>& process) {
  if (!OrphanPolicy::Keeps(domain, region)) return false;
  if (OrphanPolicy::Full(domain)) {
    // The limit holds: if leases keep all others, this one is not kept.
    Region* oldest = OrphanPolicy::Oldest(domain);
    if (oldest == nullptr && domain.leased_orphans() > 0) return false;
    if (oldest != nullptr) GiveUp(domain, *oldest, "too many (--max-orphans)");
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

Result<Region*> OrphanService::Resume(Client& client, const kvmwire::RegionDescriptor& descriptor, const std::vector<PeerFd>& fds) {
  Region* region = client.domain->FindServingRegion(client.credentials.uid, descriptor.name());
  if (region == nullptr || !region->orphan || region->info.owner_pid != client.credentials.pid || client.credentials.pid == 0)
    return nullptr;
  // whole() is called first, since reading a hole fills it.
  if (fds.empty() || !region->whole() || region->generations.all_ended() || region->identity() != FileIdOf(fds[0].get()) ||
      region->descriptor.SerializeAsString() != descriptor.SerializeAsString()) {
    GiveUp(*client.domain, *region, "its owner registers another one");
    return nullptr;
  }
  if (Status taken = client.domain->TakeOver(*region, client.AsOwner()); !taken) return taken.error();
  leases_.CutOff(*client.domain, *region, "its owner is back");
  return region;
}

void OrphanService::MakeWayFor(Domain& domain, const Region& region, std::uint32_t owner_uid) {
  for (Region* orphan : domain.OrphansInTheWay(region, owner_uid)) GiveUp(domain, *orphan, "another takes its place");
  MakeRoomForRegions(domain);
}

Result<Region*> OrphanService::FindAdoptable(const Client& client, const kvmwire::RegionDescriptor& expected, const std::string& what) {
  Region* region = client.domain->FindServingRegion(client.credentials.uid, expected.name());
  if (region == nullptr) return MakeError(Errc::kNotFound, what + "there is none without an owner");
  if (region->orphan && !region->whole()) {
    LogDamaged(*region);
    GiveUp(*client.domain, *region, kHoleInMemory);
    return MakeError(Errc::kNotFound, what + kHoleInMemory);
  }
  const std::string pid = std::to_string(region->info.owner_pid);
  if (region->orphan && region->generations.all_ended()) return MakeError(Errc::kNotFound, what + "process " + pid + " has given it up");
  if (!region->orphan) return MakeError(Errc::kAlreadyExists, what + "it belongs to process " + pid);
  // A client that asks again has not got the reply that gave it the region, so it is not writing
  // it.
  const bool asks_again =
      client.instance != 0 && region->owner_instance == client.instance && region->info.owner_pid == client.credentials.pid;
  if (!asks_again && !region->orphan->process->known())
    return MakeError(Errc::kUnsupported, what + "kvmd can't see whether process " + pid + " has ended (another PID namespace?)");
  // A running process could still write blocks that the next owner publishes.
  if (!asks_again && !region->orphan->process->Ended()) return MakeError(Errc::kUnavailable, what + "process " + pid + " has not ended");
  if (restorer_.Reading(*client.domain)) return MakeError(Errc::kUnavailable, what + "kvmd is still reading what it holds");
  if (!region->adoptable())
    return MakeError(Errc::kUnsupported, what + "its owner made it while kvmd was away, so nobody else can write it");
  if (Status fits = CheckExpected(*region, expected); !fits) return fits.error();
  return region;
}

void OrphanService::Adopt(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::RegionDescriptor& expected = message.adopt_region().expected();
  const auto refuse = [&](const Error& error) { client.ReplyError(message.request_id(), error); };
  const std::string what = "adopt region " + expected.name() + ": ";
  const Result<Region*> found = FindAdoptable(client, expected, what);
  if (!found) return refuse(found.error());
  Result<Domain::RecordList> begun = Domain::BeginRecords(**found);
  if (!begun) return refuse(begun.error());
  client.Work([this, expected, request_id = message.request_id(), ref = DomainTable::RefOf(*client.domain, **found),
               list = std::make_shared<Domain::RecordList>(std::move(*begun))](Client& its, const WorkBudget& budget) {
    const Region* region = domains_.Find(ref);
    if (region != nullptr && region->serving() && !its.domain->GoOnRecords(*region, *list, budget)) return false;
    TakeOver(its, request_id, expected, ref, list);
    return true;
  });
}

void OrphanService::TakeOver(Client& client, std::uint64_t request_id, const kvmwire::RegionDescriptor& expected, const RegionRef& ref,
                             const std::shared_ptr<Domain::RecordList>& list) {
  const auto refuse = [&](const Error& error) { client.ReplyError(request_id, error); };
  const std::string what = "adopt region " + expected.name() + ": ";
  // It may have gone, or may have an owner, since the list was begun.
  const Result<Region*> found = FindAdoptable(client, expected, what);
  if (!found) return refuse(found.error());
  if (*found != domains_.Find(ref)) return refuse(MakeError(Errc::kUnavailable, what + "another has taken its place meanwhile"));
  Region& region = **found;
  if (Status taken = client.domain->TakeOver(region, client.AsOwner()); !taken) return refuse(taken.error());
  // The new owner may overwrite its blocks at any time.
  leases_.CutOff(*client.domain, region, "another process has adopted it");

  region.owner_instance = client.instance;
  KVM_FAULT_POINT(kvmd_adoption_taken);
  persistence_.PersistRegion(*client.domain, region);
  KVM_FAULT_POINT(kvmd_adoption_persisted);
  // It writes from then on.
  persistence_.AfterStored(client.credentials.uid, [this, id = client.id, request_id, ref, list] {
    Client* adopter = clients_.Find(id);
    Region* adopted = domains_.Find(ref);
    if (adopter != nullptr && adopted != nullptr && adopted->owner == id)
      AnswerAdopter(*adopter, request_id, *adopted, list->count, list->memory.fd());
  });
}

void OrphanService::AnswerAdopter(Client& client, std::uint64_t request_id, Region& region, std::uint64_t records, int list) {
  kvmwire::ServerMessage message_out;
  message_out.set_request_id(request_id);
  kvmwire::AdoptRegionReply& reply = *message_out.mutable_adopt_region_reply();
  reply.set_region(region.row);
  reply.set_region_epoch(region.info.region_epoch);
  *reply.mutable_descriptor_() = region.descriptor;
  reply.set_records(records);
  std::vector<int> fds;
  fds.reserve(region.fds.size() + 1);
  for (const PeerFd& fd : region.fds) fds.push_back(fd.get());
  fds.push_back(list);
  if (!client.connection->TrySend(message_out, fds)) {
    // The client does not know that the region is its own, and may ask again.
    Keep(*client.domain, region, client.process);
    return client.ReplyError(
        request_id, MakeError(Errc::kResourceExhausted, "adopt region " + region.descriptor.name() + ": kvmd is out of descriptors"));
  }
  KVM_FAULT_POINT(kvmd_adoption_answered);
  LogLimited(LogLevel::kInfo, "region_adopted",
             {{"client", client.id},
              {"pid", client.credentials.pid},
              {"region", region.descriptor.name()},
              {"row", region.row},
              {"blocks", records}});
}

// ---- freeing orphans ----------------------------------------------------------------------------

void OrphanService::GiveUp(Domain& domain, Region& region, const char* why, bool wait_for_importers) {
  LogLimited(LogLevel::kInfo, "region_reclaimed",
             {{"region", region.descriptor.name()}, {"row", region.row}, {"bytes", region.segment_bytes()}, {"reason", why}});
  leases_.CutOff(domain, region, why);
  announcer_.Withdraw(domain, region, wait_for_importers);
}

// `waiting` waits for its importers.
void OrphanService::GiveUpFor(Waiting& waiting, Domain& domain, Region& region, const char* why) {
  waiting.reply.set_regions(waiting.reply.regions() + 1);
  waiting.reply.set_blocks(waiting.reply.blocks() + region.entries);
  waiting.reply.set_bytes(waiting.reply.bytes() + region.segment_bytes());
  waiting.regions.push_back(DomainTable::RefOf(domain, region));
  waiting.owners.insert(region.info.owner_uid);
  GiveUp(domain, region, why, /*wait_for_importers=*/true);
}

void OrphanService::MakeRoomForRegions(Domain& domain) {
  if (!OrphanPolicy::RowsAreFew(domain)) return;
  if (Region* oldest = OrphanPolicy::Oldest(domain)) GiveUp(domain, *oldest, "few regions are left (--max-regions)");
}

void OrphanService::Expire(SteadyTime now) {
  domains_.ForEach([&](Domain& domain) {
    if (domain.orphans() == 0) return;
    for (Region* region : domain.Orphans()) {
      if (const char* why = OrphanPolicy::WhyExpired(domain, *region, now)) GiveUp(domain, *region, why);
    }
  });
}

void OrphanService::Reclaim(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::Reclaim& request = message.reclaim();
  if (!request.device_uuid().empty() && request.device_uuid().size() != sizeof(layout::RegionInfo::device_uuid))
    return client.ReplyError(message.request_id(), MakeError(Errc::kInvalidArgument, "reclaim: device_uuid is not 16 bytes"));
  const SteadyTime now = std::chrono::steady_clock::now();
  const std::uint32_t uid = client.credentials.uid;
  const bool everywhere = AdministersAll(config_, uid);
  const OrphanPolicy::Claimant claimant{uid, Administers(config_, *client.domain, uid), client.role == kvmwire::WORKER,
                                        config_.reclaim_others_after_s};
  Waiting waiting;
  waiting.client = client.id;
  waiting.request_id = message.request_id();
  waiting.deadline = announcer_.AckDeadline(request.ack_timeout_ms());
  domains_.ForEach([&](Domain& domain) {
    if (!everywhere && &domain != client.domain) return;
    for (Region* region : domain.Orphans()) {
      switch (OrphanPolicy::Claims(request, claimant, *region, now)) {
        case OrphanPolicy::Claim::kNo: break;
        case OrphanPolicy::Claim::kLeased: waiting.reply.set_leased(waiting.reply.leased() + 1); break;
        case OrphanPolicy::Claim::kYes:
          waiting.reply.set_leases_shrunk(waiting.reply.leases_shrunk() + leases_.CutOff(domain, *region, "reclaimed by force"));
          GiveUpFor(waiting, domain, *region, "asked for");
          break;
      }
    }
  });
  waiting_.push_back(std::move(waiting));
  static_cast<void>(AnswerWaiting(now));
}

// An answer may make as much memory as a frame takes descriptors, and a user may have as many
// requests as orphans, all of which become due at once.
bool OrphanService::AnswerWaiting(SteadyTime now) {
  const WorkBudget budget;
  bool more = false;
  std::erase_if(waiting_, [&](Waiting& waiting) {
    more = budget.used_up();
    return !more && Answer(waiting, now);
  });
  return more;
}

// False: it is not time yet.
bool OrphanService::Answer(Waiting& waiting, SteadyTime now) {
  std::uint32_t left = 0;
  for (const RegionRef& ref : waiting.regions) {
    Spend(1);
    Region* region = domains_.Find(ref);
    left += region != nullptr;
    if (region != nullptr && now >= waiting.deadline) announcer_.StopWaiting(*region);
  }
  if ((left > 0 || Freeing(waiting)) && now < waiting.deadline) return false;
  Client* client = clients_.Find(waiting.client);
  if (client == nullptr) return true;
  waiting.reply.set_still_mapped(left);
  if (waiting.then) {
    ReplyMemory(*client, waiting.request_id, *waiting.then, &waiting.reply);
    return true;
  }
  kvmwire::ServerMessage message;
  message.set_request_id(waiting.request_id);
  *message.mutable_reclaim_reply() = waiting.reply;
  client->connection->Send(message);
  return true;
}

bool OrphanService::Freeing(const Waiting& waiting) const {
  return closer_ != nullptr &&
         std::any_of(waiting.owners.begin(), waiting.owners.end(), [this](std::uint32_t uid) { return closer_->Closing(uid); });
}

SteadyTime OrphanService::next_deadline() const noexcept {
  SteadyTime next = SteadyTime::max();
  for (const Waiting& waiting : waiting_) next = std::min(next, waiting.deadline);
  return next;
}

void OrphanService::Leave(const Client& client) {
  std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.client == client.id; });
}

}  // namespace kvm::daemon
