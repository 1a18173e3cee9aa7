#include "daemon/broker/clients/client_table.h"

#include <algorithm>
#include <utility>

#include "daemon/system/log.h"

namespace kvm::daemon {
namespace {

// Of an error that is sent, since it may quote the client's text
constexpr std::size_t kMaxErrorBytes = 1024;

}  // namespace

void Client::ReplyEmpty(std::uint64_t request_id) const {
  kvmwire::ServerMessage reply;
  reply.set_request_id(request_id);
  reply.mutable_empty();
  connection->Send(reply);
}

void Client::ReplyError(std::uint64_t request_id, const Error& error) const {
  kvmwire::ServerMessage reply;
  reply.set_request_id(request_id);
  reply.mutable_error()->set_code(static_cast<std::uint32_t>(error.code));
  reply.mutable_error()->set_message(error.ToString().substr(0, kMaxErrorBytes));
  connection->Send(reply);
  // A client that gets "unavailable" asks again, so it is no error to log.
  LogLimited(error.code == Errc::kUnavailable ? LogLevel::kDebug : LogLevel::kWarn, "request_refused",
             {{"client", id}, {"name", name}, {"pid", credentials.pid}, {"error", ErrcName(error.code)}, {"reason", error.ToString()}});
}

void Client::Work(Slice slice) {
  work_ = std::move(slice);
  GoOn();
}

void Client::GoOn() {
  if (work_ && work_(*this, WorkBudget())) work_ = nullptr;
}

Client& ClientTable::Add(Connection& connection, const Credentials& credentials, UniqueFd process) {
  auto client = std::make_unique<Client>();
  client->id = NextId();
  client->connection = &connection;
  client->credentials = credentials;
  client->process = std::make_shared<WatchedProcess>(std::move(process), false);
  client->connected_ms = RealtimeMs();
  const ClientId id = client->id;
  return *clients_.emplace(id, std::move(client)).first->second;
}

Client* ClientTable::Find(ClientId id) const {
  const auto found = clients_.find(id);
  return found == clients_.end() ? nullptr : found->second.get();
}

std::unique_ptr<Client> ClientTable::Take(ClientId id) {
  const auto found = clients_.find(id);
  if (found == clients_.end()) return nullptr;
  std::unique_ptr<Client> client = std::move(found->second);
  clients_.erase(found);
  return client;
}

void ClientTable::Send(ClientId to, const kvmwire::ServerMessage& message, const std::vector<int>& fds) const {
  if (const Client* client = Find(to)) client->connection->Send(message, fds);
}

std::size_t ClientTable::OfUser(std::uint32_t uid) const {
  return static_cast<std::size_t>(
      std::count_if(clients_.begin(), clients_.end(), [&](const auto& entry) { return entry.second->credentials.uid == uid; }));
}

}  // namespace kvm::daemon
