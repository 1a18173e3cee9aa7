// Dispatcher: dispatches each message that a client may send, by one table.
//
// Broker writes the table, one entry for each body of ClientMessage. The dispatcher checks the
// entry's rules for sender and descriptors before it calls the handler. A message without an entry
// is refused, so a message that was forgotten in the table can't be sent by any client.
// Single-threaded.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "daemon/broker/clients/client_table.h"
#include "kvm/error.h"
#include "proto/base/unique_fd.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// A message and the descriptors that came with it.
struct Request {
  kvmwire::ClientMessage message;
  std::vector<PeerFd> fds;
};

// Who may send a message: a client's first message must be one for strangers. Workers and observers
// are members of a domain; a monitor is none, and may only send what is for all.
enum class Sender { kStranger, kWorker, kMember, kAll };
enum class Descriptors { kNone, kAllowed };
// kReply: with the request's id. kAck: with a message that has no request id. If a handler returns
// a protocol error, there is no answer.
enum class Answer { kNone, kReply, kAck };

struct MessageRule {
  kvmwire::ClientMessage::BodyCase body;
  const char* name;  // in errors
  Sender sender;
  Descriptors descriptors;
  Answer answer;
  // An error: the client broke the protocol and is dropped.
  std::function<Status(Client&, Request&)> handle;
};

class Dispatcher {
 public:
  // At most one rule for each body.
  explicit Dispatcher(std::vector<MessageRule> rules);
  Dispatcher(const Dispatcher&) = delete;
  Dispatcher& operator=(const Dispatcher&) = delete;

  // An error: the client broke the protocol and is to be dropped. All other errors have been sent
  // as answers.
  [[nodiscard]] Status Handle(Client& client, Request request) const;
  // The same for a message whose descriptors kvmd could not take: it is refused, the client is
  // kept.
  [[nodiscard]] Status HandleWithoutDescriptors(const Client& client, const kvmwire::ClientMessage& message, const Error& why) const;

  const std::vector<MessageRule>& rules() const noexcept { return rules_; }

 private:
  static constexpr std::size_t kMaxBodies = 64;

  const MessageRule* RuleOf(const kvmwire::ClientMessage& message) const noexcept;

  const std::vector<MessageRule> rules_;
  std::array<const MessageRule*, kMaxBodies> by_body_{};  // null: none
};

}  // namespace kvm::daemon
