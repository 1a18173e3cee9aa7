#include "client/mesh/node/peers/peer_channels.h"

#include <algorithm>

#include "client/mesh/node/peers/hello_checks.h"
#include "proto/mesh/mesh.pb.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kConnectTimeout{1000};
constexpr std::size_t kMaxIdle = 4;
// Shorter than the time after which a source closes a connection without requests.
constexpr milliseconds kMaxIdleTime{60'000};

}  // namespace

Awaitable<Result<std::shared_ptr<Channel>>> PeerChannels::Open(Time deadline) {
  // The domain is not known before kvmd has been connected to.
  if (node_.client->domain().empty()) co_return MakeError(Errc::kUnavailable, "not connected to kvmd yet");
  const Time connected_by = std::min(deadline, steady_clock::now() + kConnectTimeout);
  Result<std::shared_ptr<Channel>> channel = co_await transfer_.Connect(config_.address, connected_by);
  if (!channel) co_return channel.error();
  Status greeted = co_await Greet(*channel, connected_by);
  if (!greeted) co_return greeted.error();
  co_return channel;
}

Awaitable<Status> PeerChannels::Greet(std::shared_ptr<Channel> channel, Time deadline) {
  Status secured = co_await channel->Handshake(deadline);
  if (!secured) co_return secured.error();
  const std::string domain = node_.client->domain();
  // Before anything is said to a peer that may be another one.
  if (!channel->IsNode(domain, config_.node))
    co_return MakeError(Errc::kPermissionDenied, "the peer's certificate is not of node " + config_.node + " of domain " + domain);
  kvmmesh::PeerMessage message;
  message.mutable_hello()->set_version(kMeshVersion);
  message.mutable_hello()->set_node(node_.config.node);
  message.mutable_hello()->set_domain(domain);
  message.mutable_hello()->set_bulk(channel->Offer({}));
  const std::string bytes = message.SerializeAsString();
  Status sent = co_await channel->Send(bytes, {}, deadline);
  if (!sent) co_return sent.error();
  Result<Received> received = co_await channel->Receive(deadline);
  if (!received) co_return received.error();
  if (received->payload_bytes != 0 || !message.ParseFromString(received->message) || !message.has_hello())
    co_return MakeError(Errc::kProtocol, config_.node + " answered a hello with something else");
  const kvmmesh::Hello& hello = message.hello();
  if (const Status same = CheckVersion(hello, config_.node); !same) co_return same.error();
  if (hello.node() != config_.node) co_return MakeError(Errc::kPermissionDenied, "the peer calls itself " + hello.node());
  if (const Status same = CheckDomain(hello, config_.node, domain); !same) co_return same.error();
  co_return co_await channel->Use(hello.bulk(), deadline);
}

std::shared_ptr<Channel> PeerChannels::TakeIdle() {
  const Time oldest = steady_clock::now() - kMaxIdleTime;
  std::erase_if(idle_, [&](const Idle& each) { return !each.channel->current() || each.since < oldest; });
  if (idle_.empty()) return nullptr;
  std::shared_ptr<Channel> out = std::move(idle_.back().channel);
  idle_.pop_back();
  return out;
}

void PeerChannels::GiveBack(std::shared_ptr<Channel> channel) {
  if (channel->current() && idle_.size() < kMaxIdle) idle_.push_back({std::move(channel), steady_clock::now()});
}

}  // namespace kvm::mesh
