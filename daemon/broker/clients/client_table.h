// ClientTable: the clients that are connected, by id.
//
// Broker adds and removes them; the services look them up, send messages to them and answer them.
// It owns the clients; the server owns their connections. Single-threaded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "daemon/broker/clients/announcements.h"
#include "daemon/broker/clients/connection.h"
#include "daemon/registry/domain.h"
#include "daemon/system/process_info.h"
#include "daemon/system/work_meter.h"
#include "kvm/error.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

struct Client {
  void ReplyEmpty(std::uint64_t request_id) const;
  // Says so in the log as well.
  void ReplyError(std::uint64_t request_id, const Error& error) const;
  Owner AsOwner() const noexcept { return {id, credentials.pid, credentials.uid}; }

  // A message that may take more than one slice of work: does one slice of it. True: it is done.
  // What it works on may have changed, or gone, between two slices.
  using Slice = std::function<bool(Client&, const WorkBudget&)>;
  // Begins it. Nothing else of this client is handled until it is done (GoOn).
  void Work(Slice slice);
  // One slice more of what has been begun.
  void GoOn();
  bool busy() const noexcept { return static_cast<bool>(work_); }
  // Why it is to be dropped, if a slice of its work has found a reason.
  std::optional<Error> dropped;

  ClientId id = 0;
  Connection* connection = nullptr;
  Credentials credentials;
  std::shared_ptr<WatchedProcess> process;
  bool greeted = false;
  std::uint64_t instance = 0;  // Hello::instance
  kvmwire::Role role = kvmwire::WORKER;
  bool wants_payload = false;
  std::string name;
  Domain* domain = nullptr;  // null: it has not sent its hello, or is a monitor
  std::uint64_t connected_ms = 0;
  kvmwire::StatsReport stats;  // the last one
  bool has_reported = false;
  Announcements announcements;

 private:
  Slice work_;
};

class ClientTable {
 public:
  // `process`: a pidfd of the client's, if there is one.
  Client& Add(Connection& connection, const Credentials& credentials, UniqueFd process);
  // An id that no client has or will get, for an owner that an earlier kvmd knew.
  ClientId NextId() noexcept { return next_++; }
  // Null if it has left.
  Client* Find(ClientId id) const;
  std::unique_ptr<Client> Take(ClientId id);
  // Sends nothing if the client has left.
  void Send(ClientId to, const kvmwire::ServerMessage& message, const std::vector<int>& fds = {}) const;

  template <class Visit>
  void ForEach(Visit&& visit) const {
    for (const auto& [id, client] : clients_) visit(*client);
  }
  // The next one in the order of ids; null: there is none.
  const Client* After(ClientId id) const {
    const auto next = clients_.upper_bound(id);
    return next == clients_.end() ? nullptr : next->second.get();
  }
  std::size_t size() const noexcept { return clients_.size(); }
  // Connections of one user.
  std::size_t OfUser(std::uint32_t uid) const;

 private:
  std::map<ClientId, std::unique_ptr<Client>> clients_;
  ClientId next_ = 1;
};

}  // namespace kvm::daemon
