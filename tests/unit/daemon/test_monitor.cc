// The role MONITOR: it asks for the status, belongs to no domain, and sees what its user may see.
#include <set>
#include <string>
#include <vector>

#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"

namespace kvm::test {
namespace {

kvmwire::StatusReply Ask(Node& node, ClientId client, FakeConnection& connection) {
  kvmwire::ClientMessage message;
  message.mutable_status_query()->set_clients(true);
  message.mutable_status_query()->set_memory(true);
  node.Handle(client, message);
  return connection.Take(Body::kStatusReply).message.status_reply();
}

kvmwire::StatusReply AskAs(Node& node, std::uint32_t uid) {
  FakeConnection connection;
  const ClientId id = node.Join(connection, 1, uid, kvmwire::MONITOR);
  kvmwire::StatusReply reply = Ask(node, id, connection);
  node.broker.Leave(id, false);
  return reply;
}

}  // namespace

TEST_CASE("Monitor: no domain is made for it, and it gets no registry", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId id = node.broker.Join(connection, {1, 1000, 1000});
  kvmwire::ClientMessage hello;
  hello.mutable_hello()->set_protocol_version(kProtocolVersion);
  hello.mutable_hello()->set_role(kvmwire::MONITOR);
  node.Handle(id, hello);
  const Received reply = connection.Take(Body::kHelloReply);
  CHECK(reply.fds.empty());
  CHECK(reply.message.hello_reply().domain().empty());
  CHECK(reply.message.hello_reply().epoch() == 0);
  CHECK(AskAs(node, 0).domains_size() == 0);
  CHECK(Ask(node, id, connection).domains_size() == 0);
}

TEST_CASE("Monitor: a user's sees that user's domain, root's sees all", "[unit]") {
  Node node;
  FakeConnection first, second;
  node.Join(first, kDeadPid, 1000);
  node.Join(second, kDeadPid, 1001);
  const kvmwire::StatusReply own = AskAs(node, 1001);
  REQUIRE(own.domains_size() == 1);
  CHECK(own.domains(0).name() == "uid-1001");
  CHECK(own.resident_bytes() == 0);
  // Only of its own connections: the worker's, and the one that asks.
  CHECK(own.clients() == 2);
  CHECK(AskAs(node, 1002).domains_size() == 0);
  CHECK(AskAs(node, 1002).clients() == 1);
  CHECK(AskAs(node, 0).domains_size() == 2);
}

TEST_CASE("Monitor: of a user without a domain, it is not told what others have of the host cache", "[unit]") {
  Node node(With(&Config::host_cache_bytes, std::uint64_t{64} << 20));
  FakeConnection connection;
  node.Join(connection, kDeadPid, 1000);
  const kvmwire::StatusReply reply = AskAs(node, 1002);
  REQUIRE(reply.has_host_cache());
  CHECK(reply.host_cache().max_bytes() == std::uint64_t{64} << 20);
  CHECK(reply.host_cache().bytes() == 0);
}

TEST_CASE("Monitor: it is counted among the connections and not among a domain's clients", "[unit]") {
  Node node;
  FakeConnection worker, connection;
  node.Join(worker, kDeadPid, 1000);
  const ClientId id = node.Join(connection, 1, 0, kvmwire::MONITOR);
  const kvmwire::StatusReply reply = Ask(node, id, connection);
  CHECK(reply.clients() == 2);
  CHECK(reply.domains(0).clients() == 1);
  CHECK(reply.client_list_size() == 1);
  node.broker.Leave(id, true);
  CHECK(AskAs(node, 0).clients() == 2);
}

TEST_CASE("Status: regions are grouped by model, memory and owner, and their blocks are added up", "[unit]") {
  Node node;
  FakeConnection owner, other;
  const ClientId dying = node.Join(owner), living = node.Join(other);
  WireRegion orphan = node.Granted(dying, owner, "orphan", 4, 64);
  node.Register(dying, owner, orphan);
  node.Publish(dying, owner, orphan, 1);
  WireRegion first = node.Granted(living, other, "first", 8, 64), second = node.Granted(living, other, "second", 16, 64);
  node.Register(living, other, first);
  node.Register(living, other, second);
  node.Publish(living, other, first, 2);
  node.broker.Leave(dying, true);
  const kvmwire::DomainStatus domain = AskAs(node, 1000).domains(0);
  REQUIRE(domain.memory_size() == 2);
  const kvmwire::MemoryGroup& dead = domain.memory(0).orphan() ? domain.memory(0) : domain.memory(1);
  const kvmwire::MemoryGroup& live = domain.memory(0).orphan() ? domain.memory(1) : domain.memory(0);
  CHECK(live.model_id() == LlamaSpec().model_id);
  CHECK(live.fingerprint().size() == 32);
  CHECK(live.device_uuid().empty());
  CHECK(live.handle_kind() == static_cast<std::uint32_t>(layout::HandleKind::kHostMemfd));
  CHECK_FALSE(live.orphan());
  CHECK(live.regions() == 2);
  CHECK(live.blocks() == 24);
  CHECK(live.bytes() == 24 * 64);
  CHECK(live.entries() == 8);
  CHECK(dead.orphan());
  CHECK(dead.regions() == 1);
  CHECK(dead.entries() == 4);
  CHECK(domain.counters().published() == 12);
}

TEST_CASE("Status: the memory of a domain is listed only if it is asked for", "[unit]") {
  Node node;
  FakeConnection owner;
  const ClientId worker = node.Join(owner);
  WireRegion region = node.Granted(worker, owner, "pool", 4, 64);
  node.Register(worker, owner, region);
  CHECK(node.Domain().memory_size() == 0);
  CHECK(AskAs(node, 1000).domains(0).memory_size() == 1);
}

}  // namespace kvm::test
