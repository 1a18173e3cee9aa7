// OffloadService: handles clients' messages about the host cache, and the host cache's events.
//
// Broker passes it PrepareStore, CompleteStore and HostCacheUse, the ticks and the end of clients.
// What a HostCacheUse says of whole imports goes to the domain's HotPrefixes, with a host cache or
// without. The host cache decides; this class turns its decisions into messages and lets an offer
// wait while memory is being allocated. At the cache's events (HostCacheEvents) it announces,
// grants, persists and withdraws slabs. Owns the host cache, if there is one. Single-threaded.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/services/region_announcer.h"
#include "daemon/broker/state/domain_table.h"
#include "daemon/broker/state/persistence.h"
#include "daemon/host_cache/host_cache.h"
#include "daemon/system/config.h"

namespace kvm::daemon {

class OffloadService final : private HostCacheEvents {
 public:
  // All outlive the service.
  OffloadService(const Config& config, const std::function<void()>& work_to_do, const ClientTable& clients, const DomainTable& domains,
                 RegionAnnouncer& announcer, Persistence& persistence, HugePageMaker& huge_pages, MemoryFreer& freer);
  ~OffloadService() override;

  HostCache* host_cache() const noexcept { return host_cache_.get(); }  // null: there is none
  // The description of the host cache in a client's HelloReply.
  void Describe(kvmwire::HelloReply& reply) const;

  // ---- messages. kProtocol: a message exceeds its limits, or comes out of order.

  [[nodiscard]] Status PrepareStore(Client& client, kvmwire::ClientMessage message);
  [[nodiscard]] Status CompleteStore(Client& client, kvmwire::ClientMessage message);
  [[nodiscard]] Status Use(Client& client, kvmwire::ClientMessage message);

  // Forwarded to HostCache; without one they do nothing.
  void DropMismatched(Domain& domain, const Region& region);
  void GiveUp(Region& region);
  bool GiveUpAll(const Domain& domain, const WorkBudget& budget);
  void Forget(const Domain& domain);
  void Leave(const Client& client);
  void Tick(SteadyTime now);
  bool Work();  // true if there is more

 private:
  bool AnswerPrepareStore(Client& client, const kvmwire::ClientMessage& message);
  bool AnswerWaiting();  // true: there is more
  bool HasUngranted(ClientId client) const;
  static void NoteImports(Domain& domain, const kvmwire::HostCacheUse& use);
  void GrantOnceStored(const Client& client, const Slab& slab);
  static void SendGrant(const Client& client, const Slab& slab);
  void SendAnswer(const Client& client, kvmwire::ServerMessage answer);
  void SlabOpened(Slab& slab) override;
  void SlabGranted(Slab& slab) override;
  void SlabClosing(Domain& domain, Region& region) override;
  void WorkToDo() override { work_to_do_(); }
  std::uint64_t RegistryBytesToCome() const override { return domains_.RegistryBytesToCome(); }
  std::uint64_t ClosedSlabBytesOf(std::uint32_t uid) const override { return domains_.granted().SlabBytesOf(uid); }

  const Config& config_;
  const std::function<void()>& work_to_do_;
  const ClientTable& clients_;
  const DomainTable& domains_;
  RegionAnnouncer& announcer_;
  Persistence& persistence_;
  std::unique_ptr<HostCache> host_cache_;
  // Slabs (row, its epoch) that the store is to know of before their writers
  std::set<std::pair<ClientId, std::pair<std::uint32_t, std::uint32_t>>> ungranted_;
  // Clients whose offers are decided, and answered once the store knows of those slabs
  std::set<ClientId> unanswered_;
  // Offers that nothing could be decided about yet
  std::map<ClientId, kvmwire::ClientMessage> waiting_;
  std::optional<ClientId> next_waiting_;  // while each of them is tried
};

}  // namespace kvm::daemon
