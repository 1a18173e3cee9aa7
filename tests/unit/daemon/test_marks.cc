// Marks of keys that are being computed, at a broker that is driven by hand: whose they are, how
// they end, how many there may be. The clock is the test's where time matters.
#include "proto/shm/registry_view.h"
#include "tests/support/broker/broker_node.h"

namespace kvm::test {
namespace {

using std::chrono::milliseconds;

std::vector<BlockKey> SomeKeys(std::size_t count, std::uint64_t seed = 1) {
  std::vector<BlockKey> keys;
  // Odd multiples spread over all values, as hashes do.
  for (std::uint64_t i = 1; i <= count; ++i) keys.push_back({(i + seed) * 0x9E3779B97F4A7C15u, (i + seed * 7919) * 0xD1342543DE82EF95u});
  return keys;
}

kvmwire::ClientMessage MarkMessage(std::uint64_t mark, const std::vector<BlockKey>& keys, std::uint32_t ttl_ms = 10'000) {
  kvmwire::ClientMessage message;
  message.set_request_id(9);
  message.mutable_mark_computing()->set_mark(mark);
  message.mutable_mark_computing()->set_ttl_ms(ttl_ms);
  message.mutable_mark_computing()->set_keys(keys.data(), keys.size() * sizeof(BlockKey));
  return message;
}

// A client that marks, and what it is told.
struct Marker {
  explicit Marker(Node& its_node, std::uint32_t uid = 1000) : node(its_node), id(its_node.Join(connection, kDeadPid + 5, uid)) {}

  kvmwire::MarkComputingReply Mark(std::uint64_t mark, const std::vector<BlockKey>& keys, std::uint32_t ttl_ms = 10'000) {
    node.Handle(id, MarkMessage(mark, keys, ttl_ms));
    return connection.Take(Body::kMarkComputingReply).message.mark_computing_reply();
  }
  void End(std::uint64_t mark) {
    kvmwire::ClientMessage message;
    message.mutable_end_computing()->set_mark(mark);
    node.Handle(id, message);
  }

  Node& node;
  FakeConnection connection;
  ClientId id;
};

// The domain of all clients here.
daemon::Domain& DomainOf(const Node& node) {
  daemon::Domain* found = nullptr;
  node.broker.domains().ForEach([&](daemon::Domain& domain) { found = &domain; });
  REQUIRE(found != nullptr);
  return *found;
}

// What a worker sees of marks in the registry.
MarkReader Seen(Node& node) {
  const layout::RegistryHeader& header = DomainOf(node).segment().header();
  return {DomainOf(node).segment().marks(), header.mark_buckets, &header.live_marks};
}

std::size_t Marked(Node& node, const std::vector<BlockKey>& keys, std::uint64_t now_ns = daemon::MonotonicNs()) {
  layout::MarkInfo mark{};
  return static_cast<std::size_t>(
      std::count_if(keys.begin(), keys.end(), [&](const BlockKey& key) { return Seen(node).Find(key, now_ns, mark); }));
}

}  // namespace

TEST_CASE("Marks: the first client to mark a key keeps it, and a later one is told that another has it", "[unit]") {
  Node node;
  Marker first(node), second(node);
  const std::vector<BlockKey> keys = SomeKeys(4);
  CHECK(first.Mark(1, keys).marked() == 4);
  const kvmwire::MarkComputingReply late = second.Mark(1, keys);
  CHECK(late.marked() == 0);
  CHECK(late.others() == 4);
  CHECK(late.reason().empty());
  layout::MarkInfo mark{};
  REQUIRE(Seen(node).Find(keys[2], daemon::MonotonicNs(), mark));
  CHECK(mark.client_id == first.id);
}

TEST_CASE("Marks: a mark that ends frees its keys, and only its own", "[unit]") {
  Node node;
  Marker client(node), other(node);
  const std::vector<BlockKey> keys = SomeKeys(6), others = SomeKeys(6, 100);
  client.Mark(1, keys);
  client.Mark(2, others);
  other.End(1);  // a mark of the same number, which it does not have
  CHECK(Marked(node, keys) == 6);
  client.End(1);
  CHECK(Marked(node, keys) == 0);
  CHECK(Marked(node, others) == 6);
  CHECK(other.Mark(1, keys).marked() == 6);
}

TEST_CASE("Marks: all marks of a client end with its connection", "[unit]") {
  Node node;
  Marker client(node), other(node);
  const std::vector<BlockKey> keys = SomeKeys(20);
  client.Mark(1, {keys.begin(), keys.begin() + 10});
  client.Mark(2, {keys.begin() + 10, keys.end()});
  REQUIRE(Marked(node, keys) == 20);
  node.broker.Leave(client.id, true);
  CHECK(Marked(node, keys) == 0);
  CHECK(DomainOf(node).marks().size() == 0);
  CHECK_FALSE(Seen(node).any());
}

TEST_CASE("Marks: a mark is over at its time for readers, and for kvmd at the next tick", "[unit]") {
  Node node;
  Marker client(node);
  const std::vector<BlockKey> keys = SomeKeys(3);
  client.Mark(1, keys, 5000);
  const std::uint64_t later_ns = daemon::MonotonicNs() + 5'100'000'000;
  CHECK(Marked(node, keys) == 3);
  CHECK(Marked(node, keys, later_ns) == 0);
  CHECK(DomainOf(node).marks().size() == 3);
  node.broker.Tick(std::chrono::steady_clock::now() + milliseconds(5100));
  CHECK(DomainOf(node).marks().size() == 0);
}

TEST_CASE("Marks: no mark is longer than --max-mark-ttl-s, whatever its client asks for", "[unit]") {
  Node node(With(&Config::max_mark_ttl_s, 2u));
  Marker client(node);
  const std::vector<BlockKey> keys = SomeKeys(3);
  for (const std::uint32_t ttl_ms : {5000u, 4'000'000'000u}) {
    client.Mark(1, keys, ttl_ms);
    CHECK(Marked(node, keys) == 3);
    CHECK(Marked(node, keys, daemon::MonotonicNs() + 2'100'000'000) == 0);
  }
}

TEST_CASE("Marks: a key whose mark has expired is the next client's, before any tick", "[unit]") {
  Node node;
  Marker stuck(node), next(node);
  const std::vector<BlockKey> keys = SomeKeys(3);
  daemon::MarkTable& marks = DomainOf(node).marks();
  const std::uint64_t now_ns = daemon::MonotonicNs();
  marks.Mark(stuck.id, 1000, 1, keys, now_ns, 100);
  const daemon::MarkTable::Marked marked = marks.Mark(next.id, 1000, 1, keys, now_ns + 200'000'000, 100);
  CHECK(marked.marked == 3);
  CHECK(marks.OfClient(stuck.id) == 0);
  CHECK(marks.OfClient(next.id) == 3);
}

TEST_CASE("Marks: a client may mark so many keys, and the refusal names the option", "[unit]") {
  Node node(With(&Config::max_marked_keys_per_client, 8u));
  Marker greedy(node), modest(node);
  const kvmwire::MarkComputingReply reply = greedy.Mark(1, SomeKeys(20));
  CHECK(reply.marked() == 8);
  CheckSays(reply.reason(), "--max-marked-keys-per-client");
  CHECK(modest.Mark(1, SomeKeys(4, 500)).marked() == 4);
  greedy.End(1);
  CHECK(greedy.Mark(2, SomeKeys(8, 900)).marked() == 8);
}

TEST_CASE("Marks: a user may mark so many keys over all connections, and the refusal names user and option", "[unit]") {
  Config config = With(&Config::max_marked_keys_per_user, 10u);
  config.domain_mode = daemon::DomainMode::kNode;
  Node node(config);
  Marker first(node, 1001), second(node, 1001), other(node, 1002);
  CHECK(first.Mark(1, SomeKeys(6)).marked() == 6);
  const kvmwire::MarkComputingReply reply = second.Mark(1, SomeKeys(6, 300));
  CHECK(reply.marked() == 4);
  CheckSays(reply.reason(), "user 1001");
  CheckSays(reply.reason(), "--max-marked-keys-per-user");
  CHECK(other.Mark(1, SomeKeys(6, 600)).marked() == 6);
}

TEST_CASE("Marks: a table that one user fills leaves a quarter of its rows to others of the domain", "[unit]") {
  Config config = With(&Config::max_marked_keys_per_client, 65'535u);
  config.domain_mode = daemon::DomainMode::kNode;
  Node node(config);
  Marker hostile(node, 1001), honest(node, 1002);
  for (std::uint64_t mark = 1; mark <= 40; ++mark) hostile.Mark(mark, SomeKeys(1000, mark * 5000));
  const std::uint64_t rows = DomainOf(node).segment().header().mark_buckets * layout::kMarksPerBucket;
  CHECK(DomainOf(node).marks().size() <= rows * 3 / 4);
  CHECK(honest.Mark(1, SomeKeys(200, 77)).marked() > 0);
}

TEST_CASE("Marks: a message with a part of a key, or with too many, drops its client", "[unit]") {
  Node node;
  Marker client(node);
  kvmwire::ClientMessage cut = MarkMessage(1, SomeKeys(2));
  cut.mutable_mark_computing()->mutable_keys()->pop_back();
  KVM_CHECK_ERROR(node.broker.Handle(client.id, cut, {}), Errc::kProtocol, "whole number");
  KVM_CHECK_ERROR(node.broker.Handle(client.id, MarkMessage(1, SomeKeys(kMaxMarkBatch + 1)), {}), Errc::kProtocol, "too many");
  CHECK(client.Mark(1, SomeKeys(kMaxMarkBatch)).marked() > 0);
}

TEST_CASE("Marks: an observer may not mark", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId id = node.Join(connection, kDeadPid, 1000, kvmwire::OBSERVER);
  node.Handle(id, MarkMessage(1, SomeKeys(1)));
  CheckSays(connection.TakeError(), "observer");
  CHECK(DomainOf(node).marks().size() == 0);
}

TEST_CASE("Marks: marking costs work in proportion to the keys, and ending does as well", "[unit]") {
  Node node;
  Marker client(node);
  const daemon::WorkUnits before = daemon::WorkMeter::spent();
  client.Mark(1, SomeKeys(kMaxMarkBatch));
  node.broker.Leave(client.id, true);
  const daemon::WorkUnits spent = daemon::WorkMeter::spent() - before;
  CHECK(spent >= kMaxMarkBatch);
  CHECK(spent < daemon::kSliceUnits);
}

}  // namespace kvm::test
