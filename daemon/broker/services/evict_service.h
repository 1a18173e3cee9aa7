// EvictService: drops blocks from the host cache when an administrator asks for it.
//
// Broker passes it Evict. It checks who asks, and for what; HostCache drops the blocks, a slice of
// work at a time. Each request that is carried out has two lines in the log, one of who asked for
// what before the first block goes, one of what went, also if the admin left meanwhile; no limit of
// log lines leaves them out. Owns nothing. Single-threaded.
#pragma once

#include <string>
#include <vector>

#include "daemon/broker/clients/client_table.h"
#include "daemon/broker/services/offload_service.h"
#include "daemon/broker/state/domain_table.h"
#include "daemon/system/config.h"
#include "kvm/block_key.h"

namespace kvm::daemon {

class EvictService {
 public:
  // All outlive the service.
  EvictService(const Config& config, const DomainTable& domains, const OffloadService& offload)
      : config_(config), domains_(domains), offload_(offload) {}

  // Root, kvmd's own user and --admins may in every domain, admins of a domain in theirs; else the
  // answer is kPermissionDenied. kInvalidArgument: the fingerprint's size. kNotFound: no such
  // domain. kUnsupported: no host cache. kProtocol: keys that are cut off, or too many of them.
  [[nodiscard]] Status Evict(Client& client, kvmwire::ClientMessage message);

 private:
  // The names of the domains that the client administers and asks for.
  [[nodiscard]] Result<std::vector<std::string>> DomainsFor(const Client& client, const std::string& wanted) const;

  const Config& config_;
  const DomainTable& domains_;
  const OffloadService& offload_;
};

}  // namespace kvm::daemon
