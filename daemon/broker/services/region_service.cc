#include "daemon/broker/services/region_service.h"

#include <string>
#include <utility>

#include "daemon/broker/services/damage.h"
#include "daemon/broker/services/grants.h"
#include "daemon/system/log.h"
#include "proto/base/fault_point.h"
#include "proto/base/memory_room.h"
#include "proto/shm/memory_guard.h"
#include "proto/wire/protocol_limits.h"

namespace kvm::daemon {
namespace {

// How many regions of a domain are checked for damaged memory in a tick.
constexpr std::uint32_t kLookedAtOnce = 16;

}  // namespace

void RegionService::Register(Client& client, kvmwire::ClientMessage message, std::vector<PeerFd> fds) {
  kvmwire::RegionDescriptor& descriptor = *message.mutable_register_region()->mutable_region();
  // Every announcement contains the descriptor and further fields.
  if (const std::size_t bytes = descriptor.ByteSizeLong(); bytes > kMaxDescriptorBytes) {
    return client.ReplyError(message.request_id(),
                             MakeError(Errc::kInvalidArgument, "register region: its descriptor has " + std::to_string(bytes) +
                                                                   " bytes, the limit is " + std::to_string(kMaxDescriptorBytes)));
  }
  // A client may reconnect before kvmd has seen the end of its old connection.
  const Region* holder = client.domain->FindServingRegion(client.credentials.uid, descriptor.name());
  if (holder != nullptr && holder->owner != client.id) {
    const Client* owner = clients_.Find(holder->owner);
    if (owner != nullptr && owner->connection->HungUp()) owner->connection->Disconnect();
  }
  Result<Region*> registered = orphans_.Resume(client, descriptor, fds);
  const bool resumed = registered && *registered != nullptr;
  if (registered && !resumed) registered = RegisterNew(client, std::move(descriptor), std::move(fds));
  if (!registered) return client.ReplyError(message.request_id(), registered.error());
  Region& region = **registered;
  offload_.DropMismatched(*client.domain, region);
  region.owner_instance = client.instance;
  KVM_FAULT_POINT(kvmd_region_added);
  persistence_.PersistRegion(*client.domain, region);
  KVM_FAULT_POINT(kvmd_region_persisted);
  // Importers of a resumed region were told of it before, and are told once only.
  announcer_.AnnounceToAll(*client.domain, region);
  KVM_FAULT_POINT(kvmd_region_announced);
  kvmwire::ServerMessage reply;
  reply.set_request_id(message.request_id());
  reply.mutable_register_region_reply()->set_region(region.row);
  reply.mutable_register_region_reply()->set_region_epoch(region.info.region_epoch);
  client.connection->Send(reply);
  LogLimited(LogLevel::kInfo, resumed ? "region_resumed" : "region_registered",
             {{"client", client.id},
              {"region", region.descriptor.name()},
              {"row", region.row},
              {"blocks", region.info.block_count},
              {"block_bytes", region.info.block_bytes}});
}

Result<Region*> RegionService::RegisterNew(Client& client, kvmwire::RegionDescriptor descriptor, std::vector<PeerFd> fds) {
  Domain& domain = *client.domain;
  Spend(fds.size() * kNewMemoryUnits);  // each is looked at, and mapped or named
  // The way back from blocks to entries is allocated as blocks are published: all that may be is
  // counted.
  const std::uint64_t index_bytes = (std::uint64_t{descriptor.block_count()} + domains_.blocks()) * sizeof(std::uint32_t);
  if (Status fits = CheckMemoryRoom(index_bytes, "the index of region " + descriptor.name() + " and all others"); !fits)
    return fits.error();
  Result<std::unique_ptr<Region>> region = domain.PrepareRegion(client.id, std::move(descriptor), std::move(fds));
  if (!region) return region.error();
  if (Status belongs = CheckBelongs(**region, client.credentials.uid); !belongs) return belongs.error();
  orphans_.MakeWayFor(domain, **region, client.credentials.uid);
  Result<Region*> added = domain.AddRegion(client.AsOwner(), std::move(*region));
  if (added) domains_.granted().Registered(**added);
  return added;
}

void RegionService::Unregister(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::UnregisterRegion& request = message.unregister_region();
  Region* region = client.domain->FindRegion(request.region(), request.region_epoch());
  const bool waits = message.request_id() != 0;
  if (region == nullptr || region->owner != client.id || !region->live()) {
    if (!waits) return;
    return client.ReplyError(message.request_id(), MakeError(Errc::kNotFound, "unregister: no such region of this client"));
  }
  LogLimited(LogLevel::kInfo, "region_unregistered", {{"client", client.id}, {"region", region->descriptor.name()}, {"row", region->row}});
  if (waits) {
    announcer_.WithdrawAndAnswer(*client.domain, *region, client.id, message.request_id(), request.ack_timeout_ms());
  } else {
    announcer_.Withdraw(*client.domain, *region, /*waits=*/false);
  }
}

Status RegionService::Publish(Client& client, kvmwire::ClientMessage message) {
  kvmwire::Publish& publish = *message.mutable_publish();
  if (publish.records().size() % sizeof(PublishRecord) != 0) return MakeError(Errc::kProtocol, "publish: records are cut off");
  if (publish.records().size() / sizeof(PublishRecord) > kMaxPublishBatch)
    return MakeError(Errc::kProtocol, "publish: too many records in one message");
  client.Work([this, publish = std::move(publish), progress = Domain::Publishing()](Client& its, const WorkBudget& budget) mutable {
    // Reading a hole would make kvmd pay for the memory in it.
    Region* region = its.domain->FindRegion(publish.region(), publish.region_epoch());
    if (region != nullptr && region->owner == its.id && region->live() && !region->table_whole()) DropDamaged(*its.domain, *region);
    if (!its.domain->Publish(its.id, publish, progress, budget)) return false;
    kvmwire::ServerMessage answer;
    *answer.mutable_publish_ack() = std::move(progress.ack);
    its.connection->Send(answer);
    return true;
  });
  return {};
}

Status RegionService::Retract(Client& client, kvmwire::ClientMessage message) {
  kvmwire::Retract& retract = *message.mutable_retract();
  if (retract.blocks_size() > static_cast<int>(kMaxPublishBatch))
    return MakeError(Errc::kProtocol, "retract: too many blocks in one message");
  client.Work([retract = std::move(retract), next = 0](Client& its, const WorkBudget& budget) mutable {
    return its.domain->Retract(its.id, retract, next, budget);
  });
  return {};
}

void RegionService::DropDamaged(Domain& domain, Region& region) {
  LogDamaged(region);
  if (region.filler != nullptr) {
    offload_.GiveUp(region);
  } else if (region.orphan) {
    orphans_.GiveUp(domain, region, kHoleInMemory);
  } else {
    announcer_.Withdraw(domain, region, /*waits=*/false);
  }
}

void RegionService::DropDamagedRegions() {
  // A guard of kvmd has noticed a loss: the damaged region is searched at once.
  const bool lost = std::exchange(losses_seen_, MemoryGuard::losses()) != MemoryGuard::losses();
  domains_.ForEach([&](Domain& domain) {
    while (Region* region = domain.FindDamaged(lost ? config_.max_regions : kLookedAtOnce)) DropDamaged(domain, *region);
  });
}

void RegionService::Leave(const Client& client) {
  for (Region* region : client.domain->RegionsOf(client.id)) {
    if (region->live() && !orphans_.Keep(*client.domain, *region, client.process))
      announcer_.Withdraw(*client.domain, *region, /*waits=*/false);
    region->waiting_for.clear();
  }
}

}  // namespace kvm::daemon
