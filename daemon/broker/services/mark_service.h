// MarkService: handles clients' messages about blocks that they are computing.
//
// Broker passes it MarkComputing and EndComputing, and the end of clients. It owns nothing: each
// domain has the marks of its clients (daemon/registry/mark_table.h). Single-threaded.
#pragma once

#include "daemon/broker/clients/client_table.h"

namespace kvm::daemon {

class MarkService {
 public:
  // kProtocol: more keys than a message may have, or a part of one.
  [[nodiscard]] Status Mark(Client& client, const kvmwire::ClientMessage& message);
  void End(Client& client, const kvmwire::EndComputing& end);
  void Leave(const Client& client);
};

}  // namespace kvm::daemon
