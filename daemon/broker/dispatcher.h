// Dispatcher: what is done with each message that a client may send, by one table.
//
// Broker writes the table, one entry for each body of ClientMessage. What the entry says of sender
// and descriptors is checked before its handler runs; a message without an entry is refused, so one
// that is forgotten is closed and not open. Single-threaded.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "daemon/broker/client_table.h"
#include "kvm/error.h"
#include "proto/base/unique_fd.h"
#include "proto/wire/wire.pb.h"

namespace kvm::daemon {

// A message and the descriptors that came with it.
struct Request {
  kvmwire::ClientMessage message;
  std::vector<UniqueFd> fds;
};

// Who may send a message: a client's first message has to be one for strangers, all later ones are
// for members.
enum class Sender { kStranger, kWorker, kMember };
enum class Descriptors { kNone, kAllowed };
// kReply: with the request's id. kAck: with a message that has none. What a handler refuses by a
// protocol error is not answered.
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

  // An error: the client broke the protocol and is to be dropped. What it can live with has been
  // answered.
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
