#include "tests/simulation/client_link.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdlib>

#include "proto/wire/protocol_limits.h"

namespace kvm::simulation {

void ClientLink::BeginProcess() {
  pid_ = world_.next_process++;
  instance_ = world_.random.Next() | 1;
  process_.Reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!process_) std::abort();
}

bool ClientLink::Connect() {
  const Plenty plenty(world_.machine);
  connection_ = world_.kvmd.Connect(uid_, pid_, UniqueFd(::fcntl(process_.get(), F_DUPFD_CLOEXEC, 0)));
  if (!connected()) return false;
  kvmwire::ClientMessage message;
  kvmwire::Hello& hello = *message.mutable_hello();
  hello.set_protocol_version(kProtocolVersion);
  hello.set_client_name(name_);
  hello.set_wants_payload(true);
  hello.set_instance(instance_);
  Ask({Asked::What::kHello}, std::move(message));
  return true;
}

void ClientLink::Ask(Asked asked, kvmwire::ClientMessage message, const std::vector<int>& fds) {
  message.set_request_id(next_request_);
  asked_[next_request_++] = std::move(asked);
  Send(std::move(message), fds);
}

void ClientLink::Send(kvmwire::ClientMessage message, const std::vector<int>& fds) {
  if (!connected() || connection_->kvmd_closed) return;
  const Plenty plenty(world_.machine);
  ToKvmd sent{std::move(message), {}, static_cast<std::uint32_t>(1 + world_.random.Below(3))};
  for (const int fd : fds) sent.fds.emplace_back(UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)));
  connection_->to_kvmd.push_back(std::move(sent));
}

std::optional<ToClient> ClientLink::Take() {
  if (!has_mail()) return std::nullopt;
  ToClient message = std::move(connection_->to_client.front());
  connection_->to_client.pop_front();
  return message;
}

std::optional<Asked> ClientLink::TakeAsked(const kvmwire::ServerMessage& answer) {
  const auto found = asked_.find(answer.request_id());
  if (answer.request_id() == 0 || found == asked_.end()) return std::nullopt;
  Asked asked = std::move(found->second);
  asked_.erase(found);
  return asked;
}

void ClientLink::Close() {
  if (!connected()) return;
  connection_->client_closed = true;
  connection_->to_client.clear();
  connection_ = nullptr;
  asked_.clear();
}

void ClientLink::Die(bool cut) {
  if (connected()) {
    connection_->died = true;
    if (cut) connection_->to_kvmd.clear();
  }
  Close();
  const std::uint64_t one = 1;
  if (::write(process_.get(), &one, sizeof(one)) != sizeof(one)) std::abort();
  BeginProcess();
}

}  // namespace kvm::simulation
