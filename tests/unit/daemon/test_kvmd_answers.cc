// kvmd's answers that exceed a frame, or for which it lacks descriptors: no client is disconnected
// for that.
#include <fcntl.h>

#include <deque>
#include <memory>

#include <boost/asio/io_context.hpp>

#include "daemon/server/session.h"
#include "tests/catch.h"
#include "tests/support/broker/broker_node.h"
#include "tests/support/process/socket_pair.h"

namespace kvm::test {
namespace {

kvmwire::StatusReply Status(Node& node, ClientId client, FakeConnection& connection, bool with_clients) {
  kvmwire::ClientMessage query;
  query.mutable_status_query()->set_clients(with_clients);
  node.Handle(client, query);
  return connection.Take(Body::kStatusReply).message.status_reply();
}

// One client's session over a socket pair, and what stands behind it.
struct Connection {
  Connection() : broker(config) {
    daemon::SetLogLevel(daemon::LogLevel::kError);
    daemon::Session::Socket socket(context);
    boost::system::error_code error;
    socket.assign(boost::asio::local::stream_protocol(), sockets.theirs.Release(), error);
    REQUIRE_FALSE(error);
    session =
        std::make_shared<daemon::Session>(std::move(socket), config, broker, turns, loads, closer, [this](ClientId) { ended = true; });
    session->Start();
  }
  // Whatever is to be done now.
  void Run() {
    do {
      context.restart();
      context.poll();
    } while (turns.waiting() > 0 && (turns.Run(), true));
  }

  const Config config;
  DescriptorCloser closer;  // outlives what waits in the context
  boost::asio::io_context context;
  Broker broker;
  daemon::FairTurns turns{[] {}};
  daemon::UserLoads loads{config};
  SocketPair sockets;
  std::shared_ptr<daemon::Session> session;
  bool ended = false;
};

// Where Client::ReplyError does not cut it, the answer is as long as the request: seen.
TEST_CASE("kvmd answers: an error that quotes its request is cut", "[unit]") {
  Node node;
  FakeConnection connection;
  const ClientId client = node.Join(connection);
  kvmwire::ClientMessage message;
  message.mutable_adopt_region()->mutable_expected()->set_name(std::string(500'000, 'x'));
  node.Handle(client, message);
  const std::string error = connection.TakeError();
  CheckSays(error, "adopt region xxx");
  CHECK(error.size() <= 1024);
}

TEST_CASE("kvmd answers: a list that would exceed a frame is cut, and the answer says so", "[unit]") {
  constexpr int kClients = 12'000;
  Node node;
  FakeConnection asking_peer;
  const ClientId asking = node.Join(asking_peer, 1, 1000, kvmwire::OBSERVER);
  std::deque<FakeConnection> peers(kClients);
  kvmwire::ClientMessage hello;
  hello.mutable_hello()->set_protocol_version(kProtocolVersion);
  hello.mutable_hello()->set_role(kvmwire::OBSERVER);
  hello.mutable_hello()->set_client_name(std::string(60, 'x'));
  int joined = 0;
  const auto join = [&](int until) {
    for (; joined < until; ++joined) {
      FakeConnection& connection = peers[static_cast<std::size_t>(joined)];
      node.Handle(node.broker.Join(connection, {1, 1000, 1000}, UniqueFd()), hello);
      connection.sent.clear();  // its registry's descriptor
    }
  };
  join(10);
  const kvmwire::StatusReply whole = Status(node, asking, asking_peer, true);
  CHECK(whole.client_list_size() == 11);
  CHECK_FALSE(whole.lists_cut());
  join(kClients);
  const kvmwire::StatusReply cut = Status(node, asking, asking_peer, true);
  CHECK(cut.lists_cut());
  CHECK(cut.clients() == kClients + 1);
  CHECK(cut.client_list_size() > kClients / 4);
  CHECK(cut.client_list_size() < kClients);
  CHECK(cut.ByteSizeLong() < kMaxFrameBytes);
  CHECK_FALSE(Status(node, asking, asking_peer, false).lists_cut());
}

TEST_CASE("kvmd answers: one that is too large for a frame is answered with the error, and the connection stays", "[unit]") {
  Connection connection;
  WireClient client(std::move(connection.sockets.ours));
  kvmwire::ServerMessage large;
  large.set_request_id(7);
  large.mutable_status_reply()->set_server_version(std::string(kMaxFrameBytes, 'x'));
  connection.session->Send(large, {});
  large.set_request_id(0);  // an announcement is left out
  connection.session->Send(large, {});
  connection.Run();
  const Result<Received> answer = client.Receive();
  KVM_REQUIRE_OK(answer);
  CHECK(answer->message.request_id() == 7);
  CHECK(answer->message.error().code() == static_cast<std::uint32_t>(Errc::kResourceExhausted));
  CheckSays(answer->message.error().message(), "kvmd's answer does not fit");
  kvmwire::ServerMessage small;
  small.set_request_id(8);
  small.mutable_empty();
  connection.session->Send(small, {});
  connection.Run();
  const Result<Received> next = client.Receive();
  KVM_REQUIRE_OK(next);
  CHECK(next->message.request_id() == 8);
  CHECK_FALSE(connection.ended);
  connection.session->Close("");
}

TEST_CASE("kvmd answers: a region that can't be handed over for lack of descriptors stays an orphan, to be adopted later", "[unit]") {
  Node node;
  FakeConnection owner_peer, adopter_peer;
  const ClientId owner = node.Join(owner_peer);
  WireRegion region = node.Granted(owner, owner_peer, "pool", 8);
  node.Register(owner, owner_peer, region);
  node.Publish(owner, owner_peer, region);
  node.broker.Leave(owner, /*died=*/true);
  const Sleeper process;
  const ClientId adopter = node.Join(adopter_peer, process.pid(), 1000, kvmwire::WORKER, process.PidFd(), 77);
  adopter_peer.kvmd_lacks_descriptors = true;
  node.Handle(adopter, Node::Adopt(region));
  CheckSays(adopter_peer.TakeError(), "kvmd is out of descriptors");
  CHECK(node.Domain().orphans() == 1);
  CHECK(node.Domain().entries() == 8);
  adopter_peer.kvmd_lacks_descriptors = false;
  node.Handle(adopter, Node::Adopt(region));
  const Received adopted = adopter_peer.Take(Body::kAdoptRegionReply);
  CHECK(adopted.message.adopt_region_reply().records() == 8);
  CHECK(adopted.fds.size() == 3);
  CHECK(node.Domain().orphans() == 0);
}

TEST_CASE("kvmd answers: an announcement that there is no descriptor for is made later", "[unit]") {
  Node node;
  FakeConnection owner_peer, importer_peer;
  const ClientId owner = node.Join(owner_peer), importer = node.Join(importer_peer, 1);
  importer_peer.kvmd_lacks_descriptors = true;
  WireRegion region("pool", LlamaSpec(), 8);
  node.Register(owner, owner_peer, region);
  CHECK_FALSE(importer_peer.Has(Body::kRegionAnnounce));
  importer_peer.kvmd_lacks_descriptors = false;
  node.broker.GoOnAnnouncing(importer);
  CHECK(importer_peer.Take(Body::kRegionAnnounce).message.region_announce().region() == region.row);
  CHECK_FALSE(importer_peer.Has(Body::kRegionAnnounce));
}

}  // namespace
}  // namespace kvm::test
