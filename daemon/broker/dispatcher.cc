#include "daemon/broker/dispatcher.h"

#include <cassert>
#include <utility>

#include "daemon/system/log.h"

namespace kvm::daemon {

Dispatcher::Dispatcher(std::vector<MessageRule> rules) : rules_(std::move(rules)) {
  for (const MessageRule& rule : rules_) {
    const MessageRule*& entry = by_body_.at(static_cast<std::size_t>(rule.body));
    assert(entry == nullptr && rule.handle);
    entry = &rule;
  }
}

const MessageRule* Dispatcher::RuleOf(const kvmwire::ClientMessage& message) const noexcept {
  const auto body = static_cast<std::size_t>(message.body_case());
  return body < by_body_.size() ? by_body_[body] : nullptr;
}

Status Dispatcher::Handle(Client& client, Request request) const {
  const MessageRule* rule = RuleOf(request.message);
  if (!request.fds.empty() && (rule == nullptr || rule->descriptors == Descriptors::kNone))
    return MakeError(Errc::kProtocol, "descriptors with a message that takes none");
  const bool greets = rule != nullptr && rule->sender == Sender::kStranger;
  if (!client.greeted && !greets) return MakeError(Errc::kProtocol, "the first message is not a hello");
  if (client.greeted && greets) return MakeError(Errc::kProtocol, "a second hello");
  if (rule == nullptr) {
    Error error = MakeError(Errc::kProtocol, "unknown message");
    client.ReplyError(request.message.request_id(), error);
    return error;
  }
  if (rule->sender == Sender::kWorker && client.role != kvmwire::WORKER) {
    client.ReplyError(request.message.request_id(), MakeError(Errc::kPermissionDenied, "observers only read"));
    return {};
  }
  if (rule->sender == Sender::kMember && client.role == kvmwire::MONITOR) {
    client.ReplyError(request.message.request_id(), MakeError(Errc::kPermissionDenied, "monitors ask for the status only"));
    return {};
  }
  return rule->handle(client, request);
}

Status Dispatcher::HandleWithoutDescriptors(const Client& client, const kvmwire::ClientMessage& message, const Error& why) const {
  const MessageRule* rule = RuleOf(message);
  if (!client.greeted || rule == nullptr || rule->descriptors == Descriptors::kNone)
    return MakeError(Errc::kProtocol, "descriptors with a message that takes none");
  LogLimited(LogLevel::kError, "out_of_descriptors",
             {{"what", "those of a request"}, {"client", client.id}, {"reason", why.ToString()}, {"raise", "LimitNOFILE= of kvmd's unit"}});
  client.ReplyError(message.request_id(), MakeError(Errc::kResourceExhausted, std::string(rule->name) + ": kvmd is " + why.ToString()));
  return {};
}

}  // namespace kvm::daemon
