// What is taken over UCX, and from whom: connections and pieces without a ticket, or with one that
// was used, are dropped, and take no memory.
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <vector>

#include "client/mesh/transfer/ucx_channel.h"
#include "client/mesh/transfer/ucx_link.h"
#include "proto/mesh/mesh.pb.h"
#include "proto/mesh/mesh_frame.h"
#include "tests/catch.h"
#include "tests/support/mesh/transfer_ends.h"

namespace {

using namespace kvm;
using namespace std::chrono_literals;
using boost::asio::io_context;
using mesh::UcxBinding;
using mesh::UcxHeader;
using mesh::UcxLink;
using mesh::UcxTicketUse;
using mesh::UcxWorker;

std::shared_ptr<UcxWorker> StartWorker(io_context& io) {
  ::setenv("UCX_TLS", "tcp,self", 1);
  auto worker = UcxWorker::Start(io, *mesh::ParseAddress("127.0.0.1:0"));
  ::unsetenv("UCX_TLS");
  KVM_REQUIRE_OK(worker);
  return *worker;
}

bool RunUntil(io_context& io, const std::function<bool()>& done, std::chrono::milliseconds within = 60s) {
  const auto until = std::chrono::steady_clock::now() + within;
  while (!done() && std::chrono::steady_clock::now() < until) {
    io.restart();
    io.run_one_for(10ms);
  }
  return done();
}

// A program that speaks UCX and sends what a test wants.
class RawPeer {
 public:
  RawPeer(io_context& io, const UcxWorker& to) : io_(io), worker_(StartWorker(io)) {
    const auto nobody = UcxBinding::Make();
    KVM_REQUIRE_OK(nobody);
    link_ = std::make_shared<UcxLink>(worker_, *nobody, UcxLink::Role::kConnecting);
    const auto endpoint = worker_->Connect(to.address(), *link_);
    KVM_REQUIRE_OK(endpoint);
    endpoint_ = *endpoint;
  }
  ~RawPeer() {
    worker_->Stop();
    link_.reset();
  }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  // Returns when the peer has dealt with it, or the connection has ended.
  void Send(std::uint16_t id, const UcxHeader& header, std::size_t bytes, std::uint32_t flags = UCP_AM_SEND_FLAG_RNDV) {
    Begin(id, header, bytes, flags);
    REQUIRE(RunUntil(io_, [&] { return pending_ == 0; }));
    RunUntil(
        io_, [] { return false; }, 50ms);
  }
  void Begin(std::uint16_t id, const UcxHeader& header, std::size_t bytes, std::uint32_t flags = UCP_AM_SEND_FLAG_RNDV) {
    headers_.push_back(std::make_unique<mesh::UcxHeaderBytes>(header.Encode()));
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
    param.flags = flags | UCP_AM_SEND_FLAG_REPLY;
    param.cb.send = [](void* ended, ucs_status_t, void* self) {
      auto& peer = *static_cast<RawPeer*>(self);
      --peer.pending_;
      peer.worker_->library().ucp_request_free(ended);
    };
    param.user_data = this;
    const ucs_status_ptr_t request =
        worker_->library().ucp_am_send_nbx(endpoint_, id, headers_.back()->data(), headers_.back()->size(), data_.data(), bytes, &param);
    if (UCS_PTR_IS_PTR(request)) ++pending_;
    worker_->Kick();
  }
  void Greet(const UcxBinding& binding) { Send(UcxWorker::kGreetingId, binding.Header(UcxTicketUse::kOpen, 0), 0, UCP_AM_SEND_FLAG_EAGER); }
  bool left() const { return link_->ended(); }

 private:
  io_context& io_;
  std::shared_ptr<UcxWorker> worker_;
  std::shared_ptr<UcxLink> link_;
  ucp_ep_h endpoint_ = nullptr;
  std::vector<std::byte> data_ = std::vector<std::byte>(std::size_t{4} << 20, std::byte{0x66});
  std::vector<std::unique_ptr<mesh::UcxHeaderBytes>> headers_;
  int pending_ = 0;
};

// A node that waits for the connection of one channel.
struct Waiting {
  Waiting() : worker(StartWorker(io)), binding(Made()), link(std::make_shared<UcxLink>(worker, binding, UcxLink::Role::kAccepting)) {}
  ~Waiting() {
    link.reset();
    worker->Stop();
  }
  static UcxBinding Made() {
    const auto binding = UcxBinding::Make();
    KVM_REQUIRE_OK(binding);
    return *binding;
  }

  io_context io;
  std::shared_ptr<UcxWorker> worker;
  UcxBinding binding;
  std::shared_ptr<UcxLink> link;
};

UcxHeader Piece(const UcxBinding& binding, std::uint64_t number) { return binding.Header(UcxTicketUse::kToAccepting, number); }

}  // namespace

TEST_CASE("Mesh UCX: a ticket is good for its use, its number and its channel only", "[unit]") {
  const UcxBinding binding = Waiting::Made(), other = Waiting::Made();
  const UcxHeader header = binding.Header(UcxTicketUse::kToAccepting, 3);
  CHECK(binding.Matches(header, UcxTicketUse::kToAccepting));
  CHECK_FALSE(binding.Matches(header, UcxTicketUse::kToConnecting));
  CHECK_FALSE(other.Matches(header, UcxTicketUse::kToAccepting));
  UcxHeader moved = header;
  moved.number = 4;
  CHECK_FALSE(binding.Matches(moved, UcxTicketUse::kToAccepting));
  UcxHeader flipped = header;
  flipped.ticket[15] ^= std::byte{1};
  CHECK_FALSE(binding.Matches(flipped, UcxTicketUse::kToAccepting));
  const auto bytes = header.Encode();
  CHECK(binding.Matches(*UcxHeader::Decode(bytes), UcxTicketUse::kToAccepting));
  CHECK_FALSE(UcxHeader::Decode(std::span(bytes).first(31)));
  KVM_REQUIRE_OK(UcxBinding::From(1, std::string(32, 'x')));
  KVM_CHECK_ERROR(UcxBinding::From(1, std::string(31, 'x')), Errc::kProtocol, "32 bytes");
}

TEST_CASE("Mesh UCX: a connection without the channel's secret does not become the channel's", "[unit]") {
  Waiting node;
  const auto guess = UcxBinding::From(node.binding.channel(), std::string(32, '\0'));
  KVM_REQUIRE_OK(guess);
  RawPeer stranger(node.io, *node.worker);
  stranger.Greet(*guess);
  CHECK_FALSE(node.link->open());
  // Its pieces are dropped, even with a ticket that is good.
  stranger.Send(UcxWorker::kPieceId, Piece(node.binding, 0), 4096);
  CHECK_FALSE(node.link->offered());
  RawPeer peer(node.io, *node.worker);
  peer.Greet(node.binding);
  CHECK(node.link->open());
}

TEST_CASE("Mesh UCX: a secret opens one connection", "[unit]") {
  Waiting node;
  RawPeer first(node.io, *node.worker), second(node.io, *node.worker);
  first.Greet(node.binding);
  REQUIRE(node.link->open());
  second.Greet(node.binding);
  second.Send(UcxWorker::kPieceId, Piece(node.binding, 0), 4096);
  CHECK_FALSE(node.link->offered());
  first.Begin(UcxWorker::kPieceId, Piece(node.binding, 0), 4096);
  CHECK(RunUntil(node.io, [&] { return node.link->offered().has_value(); }));
}

TEST_CASE("Mesh UCX: a piece that is not the next ones', was there before, or is too long is dropped", "[unit]") {
  Waiting node;
  RawPeer peer(node.io, *node.worker);
  peer.Greet(node.binding);
  REQUIRE(node.link->open());
  UcxHeader wrong = Piece(node.binding, 0);
  wrong.ticket[0] ^= std::byte{1};
  peer.Send(UcxWorker::kPieceId, wrong, 4096);
  peer.Send(UcxWorker::kPieceId, Piece(node.binding, UcxLink::kWindow), 4096);
  peer.Send(UcxWorker::kPieceId, node.binding.Header(UcxTicketUse::kToConnecting, 0), 4096);
  peer.Send(UcxWorker::kPieceId, Piece(node.binding, 0), UcxLink::kPieceBytes + 1);
  // Its bytes would be UCX's to keep.
  peer.Send(UcxWorker::kPieceId, Piece(node.binding, 0), 4096, UCP_AM_SEND_FLAG_EAGER);
  CHECK_FALSE(node.link->offered());

  peer.Begin(UcxWorker::kPieceId, Piece(node.binding, 0), 4096);
  REQUIRE(RunUntil(node.io, [&] { return node.link->offered() == std::optional<std::size_t>(4096); }));
  peer.Begin(UcxWorker::kPieceId, Piece(node.binding, 0), 8192);
  RunUntil(
      node.io, [] { return false; }, 200ms);
  CHECK(node.link->offered() == std::optional<std::size_t>(4096));
  std::vector<std::byte> into(4096);
  node.link->Receive(into);
  REQUIRE(RunUntil(node.io, [&] { return node.link->receiving() == 0; }));
  CHECK(std::all_of(into.begin(), into.end(), [](std::byte each) { return each == std::byte{0x66}; }));
  // Once more, after it was received.
  peer.Send(UcxWorker::kPieceId, Piece(node.binding, 0), 4096);
  CHECK_FALSE(node.link->offered());
}

TEST_CASE("Mesh UCX: connections that say nothing are bounded, and keep no peer out", "[unit]") {
  Waiting node;
  std::vector<std::unique_ptr<RawPeer>> silent;
  for (std::size_t i = 0; i < UcxWorker::kMaxStrangers + 4; ++i) {
    silent.push_back(std::make_unique<RawPeer>(node.io, *node.worker));
    RunUntil(
        node.io, [] { return false; }, 20ms);
  }
  const auto left = [&] { return std::count_if(silent.begin(), silent.end(), [](const auto& each) { return each->left(); }); };
  CHECK(RunUntil(node.io, [&] { return left() == 4; }));
  RawPeer peer(node.io, *node.worker);
  peer.Greet(node.binding);
  CHECK(node.link->open());
}

namespace {

// A node's channel whose peer is a program of the test: messages by `messages`, pieces by `pieces`.
struct LyingChannel {
  explicit LyingChannel(test::TransferEnds& ends) {
    // The ends have greeted each other as peers without UCX do; the rest is done here.
    shared = std::make_shared<mesh::UcxShared>(mesh::UcxShared{StartWorker(ends.io)});
    channel = std::make_shared<mesh::UcxChannel>(ends.right, shared);
    kvmmesh::BulkOffer asked, offer;
    asked.set_version(mesh::kBulkVersion);
    REQUIRE(offer.ParseFromString(channel->Offer(asked.SerializeAsString())));
    KVM_REQUIRE_OK(ends.Wait(channel->Use(asked.SerializeAsString(), test::Soon())));
    const auto made = UcxBinding::From(offer.channel(), offer.secret());
    KVM_REQUIRE_OK(made);
    binding = *made;
    pieces = std::make_unique<RawPeer>(ends.io, *shared->worker);
    pieces->Greet(binding);
  }
  ~LyingChannel() {
    pieces.reset();
    channel.reset();
    shared->worker->Stop();
  }

  std::shared_ptr<mesh::UcxShared> shared;
  std::shared_ptr<mesh::UcxChannel> channel;
  UcxBinding binding = Waiting::Made();
  std::unique_ptr<RawPeer> pieces;
};

// A message that says that `bytes` come over UCX.
std::string Announcing(std::uint64_t bytes) {
  std::string out(8, '\0');
  for (unsigned i = 0; i < 8; ++i) out[i] = static_cast<char>(bytes >> (8 * i));
  return out + "message";
}

}  // namespace

TEST_CASE("Mesh UCX: a piece of another length than the payload has closes the channel", "[unit]") {
  test::TransferEnds ends("tcp");
  LyingChannel lying(ends);
  KVM_REQUIRE_OK(ends.Wait(ends.left->Send(Announcing(8192), {}, test::Soon())));
  lying.pieces->Begin(UcxWorker::kPieceId, Piece(lying.binding, 0), 16384);
  const auto received = ends.Wait(lying.channel->Receive(test::Soon()));
  KVM_REQUIRE_OK(received);
  REQUIRE(received->payload_bytes == 8192);
  std::vector<std::byte> into(8192, std::byte{1});
  KVM_CHECK_ERROR(ends.Wait(lying.channel->ReceivePayload(into, test::Soon())), Errc::kProtocol, "another length");
  CHECK_FALSE(lying.channel->open());
  CHECK(std::all_of(into.begin(), into.end(), [](std::byte each) { return each == std::byte{1}; }));
}

TEST_CASE("Mesh UCX: a payload that is announced and half offered ends with the stall limit", "[unit]") {
  test::TransferEnds ends("tcp");
  LyingChannel lying(ends);
  KVM_REQUIRE_OK(ends.Wait(ends.left->Send(Announcing(2 * UcxLink::kPieceBytes), {}, test::Soon())));
  lying.pieces->Begin(UcxWorker::kPieceId, Piece(lying.binding, 0), UcxLink::kPieceBytes);
  KVM_REQUIRE_OK(ends.Wait(lying.channel->Receive(test::Soon())));
  std::vector<std::byte> into(2 * UcxLink::kPieceBytes);
  KVM_CHECK_ERROR(ends.Wait(lying.channel->ReceivePayload(into, mesh::Limits(test::Soon(), 500ms))), Errc::kDeadlineExceeded,
                  "no progress");
  std::fill(into.begin(), into.end(), std::byte{0});
  lying.pieces->Begin(UcxWorker::kPieceId, Piece(lying.binding, 1), UcxLink::kPieceBytes);
  ends.RunFor(300ms);
  CHECK(std::all_of(into.begin(), into.end(), [](std::byte each) { return each == std::byte{0}; }));
}

TEST_CASE("Mesh UCX: lengths that a peer announces are compared with the limits before memory is taken", "[unit]") {
  test::TransferEnds ends("tcp");
  LyingChannel lying(ends);
  SECTION("over the limit") { KVM_REQUIRE_OK(ends.Wait(ends.left->Send(Announcing(mesh::kMaxPayloadBytes + 1), {}, test::Soon()))); }
  SECTION("both ways at once") {
    const std::vector<std::byte> payload(10);
    KVM_REQUIRE_OK(ends.Wait(ends.left->Send(Announcing(4096), payload, test::Soon())));
  }
  SECTION("no length") { KVM_REQUIRE_OK(ends.Wait(ends.left->Send("short", {}, test::Soon()))); }
  KVM_CHECK_ERROR(ends.Wait(lying.channel->Receive(test::Soon())), Errc::kProtocol, "");
  CHECK_FALSE(lying.channel->open());
}

TEST_CASE("Mesh UCX: an offer that is none closes the connecting end, and one that leads nowhere is no error", "[unit]") {
  test::TransferEnds ends("tcp");
  const auto shared = std::make_shared<mesh::UcxShared>(mesh::UcxShared{StartWorker(ends.io)});
  kvmmesh::BulkOffer offer;
  offer.set_version(mesh::kBulkVersion);
  offer.set_address("127.0.0.1:1");
  offer.set_channel(7);
  {
    mesh::UcxChannel channel(ends.left, shared, "127.0.0.1:9");
    offer.set_secret(std::string(32, 's'));
    KVM_REQUIRE_OK(ends.Wait(channel.Use(offer.SerializeAsString(), std::chrono::steady_clock::now() + 5s)));
    CHECK(channel.open());
    CHECK(shared->Avoids("127.0.0.1:9"));
    CHECK(channel.Offer({}).empty());
  }
  test::TransferEnds again("tcp");
  mesh::UcxChannel channel(again.left, shared, "127.0.0.1:8");
  offer.set_secret("short");
  KVM_CHECK_ERROR(again.Wait(channel.Use(offer.SerializeAsString(), test::Soon())), Errc::kProtocol, "not valid");
  CHECK_FALSE(channel.open());
  shared->worker->Stop();
}
