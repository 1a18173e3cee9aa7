// Regions, from registering to the last acknowledgement: who is told of one, and who is waited for.
#include <algorithm>

#include "proto/base/fault_point.h"
#include "proto/wire/protocol_limits.h"

#include "daemon/broker/broker.h"
#include "daemon/broker/grants.h"
#include "proto/base/memory_room.h"
#include "proto/shm/memory_guard.h"

namespace kvm::daemon {
namespace {

// The longest that an owner may have importers waited for, whatever it asks.
constexpr std::uint32_t kMaxAckTimeoutMs = 600'000;
// Regions of a domain whose memory is looked at in a tick.
constexpr std::uint32_t kLookedAtOnce = 16;

}  // namespace

void Broker::Announce(Client& to, const Region& region) {
  to.announcements.Add(region.row, region.info.region_epoch);
  SendAnnouncements(to);
}

void Broker::GoOnAnnouncing(ClientId client) {
  if (const auto found = clients_.find(client); found != clients_.end()) SendAnnouncements(*found->second);
}

void Broker::SendAnnouncements(Client& to) {
  for (; !to.announcements.empty() && to.connection->TakesAnnouncements(); to.announcements.PopFront()) {
    const Announcements::Item& next = to.announcements.front();
    if (next.is_reply) {
      to.connection->Send(next.reply);
      continue;
    }
    Region* region = to.domain->FindRegion(next.row, next.region_epoch);
    if (region == nullptr || !region->serving() || region->owner == to.id) continue;  // gone, or its own, meanwhile
    if (SendAnnouncement(to, *region)) continue;
    LogLimited(LogLevel::kError, "out_of_descriptors",
               {{"what", "to announce a region, tried again"}, {"client", to.id}, {"raise", "LimitNOFILE= of kvmd's unit"}});
    return;
  }
}

bool Broker::SendAnnouncement(Client& to, Region& region) {
  kvmwire::ServerMessage message;
  kvmwire::RegionAnnounce& announce = *message.mutable_region_announce();
  announce.set_region(region.row);
  announce.set_region_epoch(region.info.region_epoch);
  announce.set_client_id(region.owner);
  *announce.mutable_descriptor_() = region.descriptor;
  announce.set_has_payload(to.wants_payload);
  announce.set_host_cache(region.filler != nullptr);
  std::vector<int> fds{region.importer_fd(0)};
  for (std::size_t i = 1; to.wants_payload && i < region.fds.size(); ++i) fds.push_back(region.importer_fd(i));
  if (!to.connection->TrySend(message, fds)) return false;
  region.announced_to.insert(to.id);
  return true;
}

void Broker::HandleRegisterRegion(Client& client, kvmwire::ClientMessage message, std::vector<UniqueFd> fds) {
  kvmwire::RegionDescriptor& descriptor = *message.mutable_register_region()->mutable_region();
  // It goes out again in every announcement, with more around it.
  if (const std::size_t bytes = descriptor.ByteSizeLong(); bytes > kMaxDescriptorBytes) {
    return ReplyError(client, message.request_id(),
                      MakeError(Errc::kInvalidArgument, "register region: its descriptor has " + std::to_string(bytes) +
                                                            " bytes, the limit is " + std::to_string(kMaxDescriptorBytes)));
  }
  // A client that reconnects may be faster than the news of its old connection's end.
  const Region* holder = client.domain->FindServingRegion(client.credentials.uid, descriptor.name());
  if (holder != nullptr && holder->owner != client.id) {
    const auto owner = clients_.find(holder->owner);
    if (owner != clients_.end() && owner->second->connection->HungUp()) owner->second->connection->Disconnect();
  }
  Result<Region*> registered = ResumeRegion(client, descriptor, fds);
  const bool resumed = registered && *registered != nullptr;
  if (registered && !resumed) registered = RegisterNewRegion(client, std::move(descriptor), std::move(fds));
  if (!registered) return ReplyError(client, message.request_id(), registered.error());
  Region& region = **registered;
  if (host_cache_) host_cache_->DropMismatched(*client.domain, region);
  region.owner_instance = client.instance;
  KVM_FAULT_POINT(kvmd_region_added);
  Persist(*client.domain, region);
  KVM_FAULT_POINT(kvmd_region_persisted);
  // Whoever imports from a resumed region has been told of it.
  for (const auto& [id, other] : clients_) {
    if (id != client.id && other->domain == client.domain && client.domain->models().HasDeclared(id, region.info.model) &&
        !region.announced_to.contains(id))
      Announce(*other, region);
  }
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

Result<Region*> Broker::RegisterNewRegion(Client& client, kvmwire::RegionDescriptor descriptor, std::vector<UniqueFd> fds) {
  Domain& domain = *client.domain;
  // The way back from blocks to entries is allocated as blocks are published: all that may be is counted.
  std::uint64_t index_bytes = std::uint64_t{descriptor.block_count()} * sizeof(std::uint32_t);
  for (const auto& [name, other] : domains_) index_bytes += other->blocks() * sizeof(std::uint32_t);
  if (Status fits = CheckMemoryRoom(index_bytes, "the index of region " + descriptor.name() + " and all others"); !fits)
    return fits.error();
  Result<std::unique_ptr<Region>> region = domain.PrepareRegion(client.id, std::move(descriptor), std::move(fds));
  if (!region) return region.error();
  if (Status belongs = CheckBelongs(**region, client.credentials.uid); !belongs) return belongs.error();
  for (Region* orphan : domain.OrphansInTheWay(**region, client.credentials.uid)) ReclaimOrphan(domain, *orphan, "another takes its place");
  MakeRoomForRegions(domain);
  return domain.AddRegion(Owner{client.id, client.credentials.pid, client.credentials.uid}, std::move(*region));
}

void Broker::Withdraw(Domain& domain, Region& region, bool owner_died) {
  CutLeases(domain, region, "its memory is given up");
  kvmwire::ServerMessage message;
  kvmwire::RegionWithdraw& withdraw = *message.mutable_region_withdraw();
  withdraw.set_region(region.row);
  withdraw.set_region_epoch(region.info.region_epoch);
  withdraw.set_owner_died(owner_died);
  withdraw.set_wants_ack(!owner_died);
  for (const ClientId id : region.announced_to) {
    const auto importer = clients_.find(id);
    if (importer == clients_.end()) continue;
    importer->second->connection->Send(message);
    if (!owner_died) region.waiting_for.insert(id);
  }
  if (state_store_ != nullptr) state_store_->ForgetRegion(region);
  KVM_FAULT_POINT(kvmd_region_withdrawn);
  domain.StartLeaving(region, owner_died ? layout::RegionState::kFree : layout::RegionState::kWithdrawing);
  work_to_do_();
}

void Broker::DropDamaged(Domain& domain, Region& region) {
  LogLimited(LogLevel::kWarn, "region_damaged",
             {{"region", region.descriptor.name()},
              {"row", region.row},
              {"pid", region.info.owner_pid},
              {"uid", region.info.owner_uid},
              {"reason", "there is a hole in its memory"}});
  if (region.filler != nullptr) {
    host_cache_->GiveUp(region);
  } else if (region.orphan) {
    ReclaimOrphan(domain, region, "there is a hole in its memory");
  } else {
    Withdraw(domain, region, /*owner_died=*/true);
  }
}

void Broker::DropDamagedRegions() {
  // kvmd itself has come upon one: it is found at once.
  const bool lost = std::exchange(losses_seen_, MemoryGuard::losses()) != MemoryGuard::losses();
  for (const auto& [name, domain] : domains_) {
    while (Region* region = domain->FindDamaged(lost ? config_.max_regions : kLookedAtOnce)) DropDamaged(*domain, *region);
  }
}

SteadyTime Broker::AckDeadline(std::uint32_t ack_timeout_ms) const {
  const std::uint32_t timeout_ms = ack_timeout_ms != 0 ? std::min(ack_timeout_ms, kMaxAckTimeoutMs) : config_.withdraw_timeout_ms;
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
}

void Broker::HandleUnregisterRegion(Client& client, const kvmwire::ClientMessage& message) {
  const kvmwire::UnregisterRegion& request = message.unregister_region();
  Region* region = client.domain->FindRegion(request.region(), request.region_epoch());
  const bool waits = message.request_id() != 0;
  if (region == nullptr || region->owner != client.id || !region->live()) {
    if (!waits) return;
    return ReplyError(client, message.request_id(), MakeError(Errc::kNotFound, "unregister: no such region of this client"));
  }
  LogLimited(LogLevel::kInfo, "region_unregistered", {{"client", client.id}, {"region", region->descriptor.name()}, {"row", region->row}});
  if (waits) {
    unregisters_.push_back(
        {client.domain, request.region(), request.region_epoch(), client.id, message.request_id(), AckDeadline(request.ack_timeout_ms())});
  }
  Withdraw(*client.domain, *region, /*owner_died=*/!waits);
}

void Broker::HandleWithdrawAck(Client& client, const kvmwire::WithdrawAck& ack) {
  Region* region = client.domain->FindRegion(ack.region(), ack.region_epoch());
  if (region == nullptr || region->live() || region->waiting_for.erase(client.id) == 0) return;
  if (region->waiting_for.empty()) work_to_do_();
}

// A client's end, both ways: its own regions go without waiting for anybody, or stay without it, and nobody waits for it.
void Broker::DropRegionsOf(const Client& client) {
  for (Region* region : client.domain->RegionsOf(client.id)) {
    if (region->live() && !MakeOrphan(*client.domain, *region, client.process)) Withdraw(*client.domain, *region, /*owner_died=*/true);
    region->waiting_for.clear();
  }
  std::erase_if(unregisters_, [&](const PendingUnregister& pending) { return pending.client == client.id; });
  std::erase_if(reclaims_, [&](const PendingReclaim& pending) { return pending.client == client.id; });
  client.domain->StopWaitingFor(client.id);
  work_to_do_();
}

SteadyTime Broker::next_deadline() const noexcept {
  SteadyTime next = SteadyTime::max();
  for (const PendingUnregister& pending : unregisters_) next = std::min(next, pending.deadline);
  for (const PendingReclaim& pending : reclaims_) next = std::min(next, pending.deadline);
  return next;
}

// Answers owners whose region is gone, and those whose deadline has passed.
void Broker::CheckUnregisters(SteadyTime now) {
  std::erase_if(unregisters_, [&](const PendingUnregister& pending) {
    Region* region = pending.domain->FindRegion(pending.row, pending.region_epoch);
    if (region != nullptr && now < pending.deadline) return false;
    const auto client = clients_.find(pending.client);
    if (client == clients_.end()) {  // kvmd's own: nobody to answer
      if (region != nullptr) region->waiting_for.clear();
      work_to_do_();
      return true;
    }
    if (region == nullptr || region->waiting_for.empty()) {
      ReplyEmpty(*client->second, pending.request_id);
      return true;
    }
    LogLimited(LogLevel::kWarn, "withdraw_timed_out",
               {{"region", region->descriptor.name()}, {"importers", std::uint64_t{region->waiting_for.size()}}});
    ReplyError(*client->second, pending.request_id,
               MakeError(Errc::kDeadlineExceeded, "unregister: an importer has not unmapped the region in time"));
    region->waiting_for.clear();
    work_to_do_();
    return true;
  });
}

}  // namespace kvm::daemon
