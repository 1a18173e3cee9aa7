// The table by which kvmd dispatches messages: it has every message of the wire, and what it does
// not have is refused.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "daemon/broker/dispatcher.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/data/wire_schema.h"

namespace kvm::test {
namespace {

using daemon::Answer;
using daemon::Client;
using daemon::Descriptors;
using daemon::Dispatcher;
using daemon::MessageRule;
using daemon::Request;
using daemon::Sender;

// The body that a rule is for, and nothing in it.
kvmwire::ClientMessage Empty(const MessageRule& rule) {
  kvmwire::ClientMessage message;
  REQUIRE(message.ParseFromString(WireBytes(static_cast<int>(rule.body), "")));
  REQUIRE(message.body_case() == rule.body);
  message.set_request_id(7);
  return message;
}

// kvmd's rules with handlers that only count.
std::vector<MessageRule> CountingRules(unsigned& handled) {
  std::vector<MessageRule> rules = Node().broker.dispatcher().rules();
  for (MessageRule& rule : rules) {
    rule.handle = [&handled](Client&, Request&) -> Status {
      ++handled;
      return {};
    };
  }
  return rules;
}

Client Member(FakeConnection& connection, kvmwire::Role role) {
  Client client;
  client.connection = &connection;
  client.greeted = true;
  client.role = role;
  return client;
}

std::vector<PeerFd> OneDescriptor() {
  std::vector<PeerFd> fds;
  fds.emplace_back(UniqueFd(::fcntl(0, F_DUPFD_CLOEXEC, 0)));
  return fds;
}

// What a member of this role may send; all else is refused with an error that says `refusal`.
std::set<std::string> MessagesLetThrough(kvmwire::Role role, const std::string& refusal) {
  unsigned handled = 0;
  const Dispatcher dispatcher(CountingRules(handled));
  std::set<std::string> let_through;
  for (const MessageRule& rule : dispatcher.rules()) {
    if (rule.sender == Sender::kStranger) continue;
    INFO(rule.name);
    FakeConnection connection;
    Client client = Member(connection, role);
    handled = 0;
    KVM_REQUIRE_OK(dispatcher.Handle(client, {Empty(rule), {}}));
    if (handled == 1) {
      let_through.insert(rule.name);
    } else {
      CheckSays(connection.TakeError(), refusal);
    }
    Client worker = Member(connection, kvmwire::WORKER);
    handled = 0;
    KVM_REQUIRE_OK(dispatcher.Handle(worker, {Empty(rule), {}}));
    CHECK(handled == 1);
  }
  return let_through;
}

}  // namespace

TEST_CASE("Dispatch: every message that the wire has for kvmd has a rule, and there is none besides", "[unit]") {
  const auto messages = ReadWireMessages();
  std::set<int> of_wire, of_table;
  for (const WireField& field : messages.at("ClientMessage")) {
    if (messages.contains(field.type)) of_wire.insert(field.number);
  }
  REQUIRE(of_wire.size() > 10);
  Node node;
  for (const MessageRule& rule : node.broker.dispatcher().rules()) {
    INFO(rule.name);
    CHECK(of_table.insert(static_cast<int>(rule.body)).second);
  }
  CHECK(of_table == of_wire);
}

TEST_CASE("Dispatch: a message without a rule is refused, and its sender is dropped", "[unit]") {
  unsigned handled = 0;
  const std::vector<MessageRule> rules = CountingRules(handled);
  for (const MessageRule& forgotten : rules) {
    if (forgotten.sender == Sender::kStranger) continue;
    INFO(forgotten.name);
    std::vector<MessageRule> others;
    std::copy_if(rules.begin(), rules.end(), std::back_inserter(others),
                 [&](const MessageRule& rule) { return rule.body != forgotten.body; });
    const Dispatcher dispatcher(std::move(others));
    FakeConnection connection;
    Client client = Member(connection, kvmwire::WORKER);
    const Status status = dispatcher.Handle(client, {Empty(forgotten), {}});
    REQUIRE_FALSE(status);
    CHECK(status.error().code == Errc::kProtocol);
    CheckSays(connection.TakeError(), "unknown message");
    CHECK_FALSE(dispatcher.HandleWithoutDescriptors(client, Empty(forgotten), MakeError(Errc::kResourceExhausted, "out")));
  }
  CHECK(handled == 0);
}

TEST_CASE("Dispatch: a hello comes first, and only first", "[unit]") {
  unsigned handled = 0;
  const Dispatcher dispatcher(CountingRules(handled));
  for (const MessageRule& rule : dispatcher.rules()) {
    INFO(rule.name);
    FakeConnection connection;
    Client client = Member(connection, kvmwire::WORKER);
    client.greeted = rule.sender == Sender::kStranger;
    CHECK_FALSE(dispatcher.Handle(client, {Empty(rule), {}}));
  }
  CHECK(handled == 0);
}

TEST_CASE("Dispatch: observers may send queries, an acknowledgement, a reclaim and an evict, and no other message", "[unit]") {
  CHECK(MessagesLetThrough(kvmwire::OBSERVER, "observers only read") ==
        std::set<std::string>{"ping", "stats report", "status query", "withdraw ack", "reclaim", "evict"});
}

TEST_CASE("Dispatch: monitors may send a ping and a status query, and no other message", "[unit]") {
  CHECK(MessagesLetThrough(kvmwire::MONITOR, "only") == std::set<std::string>{"ping", "status query"});
}

TEST_CASE("Dispatch: descriptors come with the registration of a region and with nothing else", "[unit]") {
  unsigned handled = 0;
  const Dispatcher dispatcher(CountingRules(handled));
  for (const MessageRule& rule : dispatcher.rules()) {
    INFO(rule.name);
    FakeConnection connection;
    Client client = Member(connection, kvmwire::WORKER);
    client.greeted = rule.sender != Sender::kStranger;
    const bool takes = rule.body == kvmwire::ClientMessage::kRegisterRegion;
    handled = 0;
    CHECK(dispatcher.Handle(client, {Empty(rule), OneDescriptor()}).has_value() == takes);
    CHECK(handled == (takes ? 1 : 0));
    // kvmd's own lack of descriptors is no fault of who may send them.
    const Status lacking = dispatcher.HandleWithoutDescriptors(client, Empty(rule), MakeError(Errc::kResourceExhausted, "out of them"));
    CHECK(lacking.has_value() == takes);
    if (takes) CheckSays(connection.TakeError(), "register region: kvmd is ");
  }
}

TEST_CASE("Dispatch: a message is answered as its rule says, even when there is nothing in it", "[unit]") {
  Node node;
  for (const MessageRule& rule : node.broker.dispatcher().rules()) {
    if (rule.sender == Sender::kStranger) continue;
    INFO(rule.name);
    FakeConnection connection;
    const ClientId id = node.Join(connection);
    connection.sent.clear();
    node.Handle(id, Empty(rule));
    CHECK(connection.sent.size() == (rule.answer == Answer::kNone ? 0 : 1));
    for (const Received& received : connection.sent) CHECK(received.message.request_id() == (rule.answer == Answer::kReply ? 7 : 0));
    node.broker.Leave(id, false);
  }
}

}  // namespace kvm::test
