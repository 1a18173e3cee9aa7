#include "daemon/broker/services/region_announcer.h"

#include <algorithm>
#include <utility>

#include "daemon/system/log.h"
#include "proto/base/fault_point.h"

namespace kvm::daemon {
namespace {

// The upper limit of the time for which kvmd waits for importers.
constexpr std::uint32_t kMaxAckTimeoutMs = 600'000;

}  // namespace

void RegionAnnouncer::DeclareModel(Client& client, const kvmwire::ClientMessage& message) {
  Result<ModelSpec> spec = ModelSpec::FromCanonical(message.declare_model().spec());
  if (!spec) return client.ReplyError(message.request_id(), spec.error());
  const Result<ModelTable::Declared> declared = client.domain->models().Declare(client.id, client.credentials.uid, *spec);
  if (!declared) return client.ReplyError(message.request_id(), declared.error());
  if (!declared->before || message.declare_model().announce_again()) {
    for (Region* region : client.domain->ServingRegionsOfModel(declared->row)) {
      if (region->owner != client.id) client.announcements.Add(region->row, region->info.region_epoch);
    }
  }
  kvmwire::ServerMessage reply;
  reply.set_request_id(message.request_id());
  reply.mutable_declare_model_reply()->set_model(declared->row);
  client.announcements.AddReply(std::move(reply));
  GoOn(client);
}

void RegionAnnouncer::AnnounceToAll(const Domain& domain, const Region& region) {
  // An announcement may have as many descriptors as a frame takes: so the first few are told now,
  // the others in slices.
  const WorkBudget budget;
  clients_.ForEach([&](Client& client) {
    Spend(1);
    if (client.domain != &domain || client.id == region.owner || !client.domain->models().HasDeclared(client.id, region.info.model) ||
        region.announced_to.contains(client.id))
      return;
    client.announcements.Add(region.row, region.info.region_epoch);
    if (budget.used_up()) {
      behind_.insert(client.id);
    } else {
      GoOn(client);
    }
  });
  if (!behind_.empty()) work_to_do_();
}

void RegionAnnouncer::GoOnAll() {
  clients_.ForEach([&](const Client& client) {
    if (!client.announcements.empty()) behind_.insert(client.id);
  });
  if (Work()) work_to_do_();
}

bool RegionAnnouncer::Work() {
  const WorkBudget budget;
  GoOnWithdrawing(budget);
  for (; !behind_.empty() && !budget.used_up(); behind_.erase(behind_.begin())) {
    if (Client* client = clients_.Find(*behind_.begin())) GoOn(*client);
  }
  return !behind_.empty() || !telling_.empty();
}

void RegionAnnouncer::GoOn(Client& to) {
  for (; !to.announcements.empty() && to.connection->TakesAnnouncements(); to.announcements.PopFront()) {
    const Announcements::Item& next = to.announcements.front();
    if (next.is_reply) {
      to.connection->Send(next.reply);
      continue;
    }
    Spend(1);
    Region* region = to.domain->FindRegion(next.row, next.region_epoch);
    // It is gone by now, or belongs to this client
    if (region == nullptr || !region->serving() || region->owner == to.id) continue;
    if (Send(to, *region)) continue;
    LogLimited(LogLevel::kError, "out_of_descriptors",
               {{"what", "to announce a region, tried again"}, {"client", to.id}, {"raise", "LimitNOFILE= of kvmd's unit"}});
    return;
  }
}

bool RegionAnnouncer::Send(Client& to, Region& region) {
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

// There may be many importers, and many regions that end at once: the first few are told now, the
// others in slices.
void RegionAnnouncer::Withdraw(Domain& domain, Region& region, bool waits) {
  leases_.CutOff(domain, region, "its memory is given up");
  const WorkBudget budget;
  const kvmwire::ServerMessage message = Withdrawal(region, waits);
  for (const ClientId id : region.announced_to) {
    Spend(1);
    const Client* importer = clients_.Find(id);
    if (importer == nullptr) continue;
    if (waits) region.waiting_for.insert(id);
    if (telling_.empty() && !budget.used_up()) {
      importer->connection->Send(message);
    } else {
      region.to_tell.push_back(id);
    }
  }
  if (!region.to_tell.empty()) telling_.push_back(DomainTable::RefOf(domain, region));
  persistence_.ForgetRegion(region);
  KVM_FAULT_POINT(kvmd_region_withdrawn);
  domain.StartLeaving(region, /*asks_importers=*/waits);
  work_to_do_();
}

kvmwire::ServerMessage RegionAnnouncer::Withdrawal(const Region& region, bool waits) {
  kvmwire::ServerMessage message;
  kvmwire::RegionWithdraw& withdraw = *message.mutable_region_withdraw();
  withdraw.set_region(region.row);
  withdraw.set_region_epoch(region.info.region_epoch);
  withdraw.set_owner_died(!waits);
  withdraw.set_wants_ack(waits);
  return message;
}

void RegionAnnouncer::GoOnWithdrawing(const WorkBudget& budget) {
  while (!telling_.empty() && !budget.used_up()) {
    Region* region = domains_.Find(telling_.front());
    if (region != nullptr && !region->to_tell.empty()) {
      Spend(1);
      clients_.Send(region->to_tell.back(), Withdrawal(*region, region->asks_importers));
      region->to_tell.pop_back();
    } else {
      telling_.pop_front();
      work_to_do_();  // its row may be free now
    }
  }
}

void RegionAnnouncer::WithdrawAndAnswer(Domain& domain, Region& region, ClientId client, std::uint64_t request_id,
                                        std::uint32_t ack_timeout_ms) {
  waiting_.push_back({DomainTable::RefOf(domain, region), client, request_id, AckDeadline(ack_timeout_ms)});
  Withdraw(domain, region, /*waits=*/true);
}

void RegionAnnouncer::WithdrawAck(Client& client, const kvmwire::WithdrawAck& ack) {
  Region* region = client.domain->FindRegion(ack.region(), ack.region_epoch());
  if (region == nullptr || region->live() || region->waiting_for.erase(client.id) == 0) return;
  if (region->waiting_for.empty()) work_to_do_();
}

SteadyTime RegionAnnouncer::AckDeadline(std::uint32_t ack_timeout_ms) const {
  const std::uint32_t timeout_ms = ack_timeout_ms != 0 ? std::min(ack_timeout_ms, kMaxAckTimeoutMs) : config_.withdraw_timeout_ms;
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
}

void RegionAnnouncer::StopWaiting(Region& region) {
  region.waiting_for.clear();
  work_to_do_();
}

void RegionAnnouncer::AnswerWaiting(SteadyTime now) {
  std::erase_if(waiting_, [&](const Waiting& waiting) { return Answer(waiting, now); });
}

// False: it is not time yet.
bool RegionAnnouncer::Answer(const Waiting& waiting, SteadyTime now) {
  Region* region = domains_.Find(waiting.region);
  if (region != nullptr && now < waiting.deadline) return false;
  const Client* client = clients_.Find(waiting.client);
  if (region != nullptr && client != nullptr && !region->waiting_for.empty()) {
    LogLimited(LogLevel::kWarn, "withdraw_timed_out",
               {{"region", region->descriptor.name()}, {"importers", std::uint64_t{region->waiting_for.size()}}});
    client->ReplyError(waiting.request_id,
                       MakeError(Errc::kDeadlineExceeded, "unregister: an importer has not unmapped the region in time"));
  } else if (client != nullptr) {
    client->ReplyEmpty(waiting.request_id);
  }
  if (region != nullptr) StopWaiting(*region);
  return true;
}

SteadyTime RegionAnnouncer::next_deadline() const noexcept {
  SteadyTime next = SteadyTime::max();
  for (const Waiting& waiting : waiting_) next = std::min(next, waiting.deadline);
  return next;
}

void RegionAnnouncer::Leave(const Client& client) {
  std::erase_if(waiting_, [&](const Waiting& waiting) { return waiting.client == client.id; });
  client.domain->StopWaitingFor(client.id);
  work_to_do_();
}

}  // namespace kvm::daemon
