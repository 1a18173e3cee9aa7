#include "client/mesh/transfer/ucx_channel.h"

#include <algorithm>
#include <new>
#include <utility>

#include "proto/mesh/mesh.pb.h"
#include "proto/mesh/mesh_frame.h"

namespace kvm::mesh {
namespace {

using boost::asio::ip::tcp;

constexpr std::size_t kPrefixBytes = 8;

std::string Prefixed(std::uint64_t payload_bytes, const std::string& message) {
  std::string out(kPrefixBytes, '\0');
  for (unsigned i = 0; i < kPrefixBytes; ++i) out[i] = static_cast<char>(payload_bytes >> (8 * i));
  return out += message;
}

bool IsLarge(std::span<const std::byte> part) { return part.size() >= kUcxLeastBytes; }

std::uint64_t TakePrefix(std::string& message) {
  std::uint64_t bytes = 0;
  for (unsigned i = 0; i < kPrefixBytes; ++i) bytes |= static_cast<std::uint64_t>(static_cast<unsigned char>(message[i])) << (8 * i);
  message.erase(0, kPrefixBytes);
  return bytes;
}

}  // namespace

// Whatever ends a call, a lack of memory or the end of the process: what UCX was given is not in
// use afterwards.
class UcxChannel::InUse {
 public:
  explicit InUse(std::shared_ptr<UcxLink> link) noexcept : link_(std::move(link)) {}
  ~InUse() {
    if (link_ && link_->sending() + link_->receiving() > 0) link_->CloseNow();
  }
  InUse(const InUse&) = delete;
  InUse& operator=(const InUse&) = delete;

 private:
  const std::shared_ptr<UcxLink> link_;
};

bool UcxChannel::Busy(const UcxLink& link, Until until) noexcept {
  switch (until) {
    case Until::kRoom: return !link.ended() && link.sending() >= UcxLink::kWindow;
    case Until::kSent: return link.sending() > 0;
    case Until::kOffered: return !link.ended() && (link.receiving() >= UcxLink::kWindow || !link.offered());
    case Until::kReceived: return link.receiving() > 0;
  }
  return false;
}

UcxChannel::UcxChannel(std::shared_ptr<Channel> messages, std::shared_ptr<UcxShared> shared, std::string address)
    : messages_(std::move(messages)),
      shared_(std::move(shared)),
      address_(std::move(address)),
      guard_(std::make_shared<StallGuard>(shared_->worker->io().get_executor(), [this] {
        messages_->Close();
        if (link_) link_->Close(true);
      })) {
  SetRemote(messages_->remote());
}

UcxChannel::~UcxChannel() {
  guard_->Stop();
  Close();
}

void UcxChannel::Close() noexcept {
  messages_->Close();
  if (link_) link_->Close(false);
}

Error UcxChannel::Fail(Error error) {
  Close();
  return error;
}

std::string UcxChannel::Offer(const std::string& peers) {
  kvmmesh::BulkOffer offer;
  if (connecting()) {
    if (shared_->Avoids(address_)) return {};
  } else {
    if (peers.empty() || !offer.ParseFromString(peers) || offer.version() != kBulkVersion) return {};
    const Result<UcxBinding> binding = UcxBinding::Make();
    if (!binding) return {};
    link_ = std::make_shared<UcxLink>(shared_->worker, *binding, UcxLink::Role::kAccepting);
    const tcp::endpoint& at = shared_->worker->address();
    offer.set_address((at.address().is_v6() ? "[" + at.address().to_string() + "]" : at.address().to_string()) + ":" +
                      std::to_string(at.port()));
    offer.set_channel(binding->channel());
    offer.set_secret(binding->secret());
  }
  offer.set_version(kBulkVersion);
  return offer.SerializeAsString();
}

Awaitable<Status> UcxChannel::Use(std::string peers, Time deadline) {
  if (!connecting()) {
    prefixed_ = link_ != nullptr;
    co_return Status();
  }
  if (peers.empty()) co_return Status();
  if (shared_->Avoids(address_)) co_return Fail(MakeError(Errc::kProtocol, "an answer to an offer that was not made"));
  kvmmesh::BulkOffer offer;
  Result<tcp::endpoint> to = MakeError(Errc::kProtocol, "no offer");
  Result<UcxBinding> binding = to.error();
  if (offer.ParseFromString(peers) && offer.version() == kBulkVersion) {
    to = ParseAddress(offer.address());
    binding = UcxBinding::From(offer.channel(), offer.secret());
  }
  if (!to || !binding) co_return Fail(MakeError(Errc::kProtocol, "what the peer says of UCX is not valid"));
  if (to->address().is_unspecified()) to->address(ParseAddress(address_)->address());
  prefixed_ = true;
  const std::shared_ptr<UcxLink> link = std::make_shared<UcxLink>(shared_->worker, *binding, UcxLink::Role::kConnecting);
  Status connected = link->Connect(*to);
  while (connected && !link->open() && !link->ended() && std::chrono::steady_clock::now() < deadline) co_await link->Changed(deadline);
  if (link->open()) {
    link_ = link;
  } else {
    const std::string why = !connected ? connected.error().message : link->ended() ? link->failure() : "UCX: no answer";
    shared_->Avoid(address_, why);
    link->Close(true);
  }
  co_return Status();
}

Awaitable<void> UcxChannel::Wait(Until until, Limits limits) {
  const std::shared_ptr<UcxLink> link = link_;
  if (!Busy(*link, until)) co_return;
  const std::uint64_t before = link->sent_bytes() + link->received_bytes();
  guard_->Begin(limits);
  while (Busy(*link, until)) {
    co_await link->Changed();
    guard_->Progress(link->sent_bytes() + link->received_bytes() - before);
  }
  guard_->End();
}

// Why the link has ended; the channel is closed.
Error UcxChannel::Ended(const char* what) {
  if (guard_->cause() != nullptr) return Fail(MakeError(Errc::kDeadlineExceeded, std::string(what) + ": " + guard_->cause()));
  const std::string why = link_->failure();
  if (connecting() && messages_->open()) shared_->Avoid(address_, why);
  return Fail(MakeError(Errc::kUnavailable, std::string(what) + ": " + why));
}

Awaitable<Status> UcxChannel::SendAll(std::span<const Outgoing> batch, Limits limits) {
  if (!prefixed_) co_return co_await messages_->SendAll(batch, limits);
  const std::shared_ptr<UcxLink> link = link_ && link_->open() ? link_ : nullptr;
  const InUse in_use(link);
  const std::uint64_t before = link ? link->sent_bytes() : 0;
  std::uint64_t apart_bytes = 0;
  Status good;
  for (const Outgoing& each : batch) {
    const std::uint64_t bytes = BytesOf(each.payload);
    const bool apart = link && !each.payload.empty() && std::all_of(each.payload.begin(), each.payload.end(), IsLarge);
    if (apart && bytes > kMaxPayloadBytes) good = MakeError(Errc::kInvalidArgument, "a payload over the limit");
    if (good) {
      const Outgoing framed{Prefixed(apart ? bytes : 0, each.message), apart ? SentParts() : each.payload};
      good = co_await messages_->SendAll(std::span(&framed, 1), limits);
    }
    apart_bytes += apart ? bytes : 0;
    for (std::size_t i = 0; good && apart && i < each.payload.size(); ++i) good = co_await SendPieces(each.payload[i], limits);
    if (!good) break;
  }
  if (!link) co_return good;
  if (!good) link->Close(true);
  co_await Wait(Until::kSent, limits);
  const std::uint64_t sent = link->sent_bytes() - before;
  shared_->sent_bytes += sent;
  if (!good) co_return Fail(good.error());
  // The guard may have closed the channel when the last piece had just been sent.
  if (sent != apart_bytes || guard_->cause() != nullptr) co_return Ended("send");
  co_return good;
}

// Starts them; the last ones are under way when it returns.
Awaitable<Status> UcxChannel::SendPieces(std::span<const std::byte> part, Limits limits) {
  const std::shared_ptr<UcxLink> link = link_;
  while (!part.empty()) {
    co_await Wait(Until::kRoom, limits);
    if (link->ended()) co_return Ended("send");
    const std::size_t bytes = std::min(part.size(), UcxLink::kPieceBytes);
    link->Send(part.first(bytes));
    part = part.subspan(bytes);
  }
  co_return Status();
}

Awaitable<Result<Received>> UcxChannel::Receive(Limits limits) {
  if (untaken_ != 0) co_return Fail(MakeError(Errc::kProtocol, "a payload was not expected"));
  Result<Received> received = co_await messages_->Receive(limits);
  if (!received || !prefixed_) co_return received;
  if (received->message.size() < kPrefixBytes) co_return Fail(MakeError(Errc::kProtocol, "a message without the length of its payload"));
  const std::uint64_t apart = TakePrefix(received->message);
  if (apart == 0) co_return received;
  if (!link_) co_return Fail(MakeError(Errc::kUnavailable, "the peer uses a connection over UCX that was given up"));
  if (received->payload_bytes != 0 || apart > kMaxPayloadBytes) co_return Fail(MakeError(Errc::kProtocol, "a payload of no valid length"));
  untaken_ = received->payload_bytes = apart;
  co_return received;
}

Awaitable<Status> UcxChannel::ReceiveParts(ReceivedParts into, Limits limits, Arrivals* arrivals) {
  if (untaken_ == 0) co_return co_await messages_->ReceiveParts(into, limits, arrivals);
  untaken_ = 0;
  co_return co_await Fetch(into, limits);
}

Awaitable<Result<std::string>> UcxChannel::TakePayload(Limits limits) {
  if (untaken_ == 0) co_return co_await messages_->TakePayload(limits);
  const std::uint64_t bytes = std::exchange(untaken_, 0);
  std::string out;
  while (out.size() < bytes) {
    // In whole pieces, as the sender has cut it; memory is taken as they arrive.
    const std::size_t begin = out.size();
    try {
      out.resize(begin + std::min<std::uint64_t>(bytes - begin, std::max(UcxLink::kPieceBytes, begin)));
    } catch (const std::bad_alloc&) {
      co_return Fail(MakeError(Errc::kResourceExhausted, "no memory for a payload of " + std::to_string(bytes) + " bytes"));
    }
    const std::span<std::byte> part = std::as_writable_bytes(std::span(out)).subspan(begin);
    Status arrived = co_await Fetch({&part, 1}, limits);
    if (!arrived) co_return arrived.error();
  }
  co_return out;
}

Awaitable<Status> UcxChannel::Fetch(ReceivedParts into, Limits limits) {
  const std::shared_ptr<UcxLink> link = link_;
  const InUse in_use(link);
  const std::uint64_t before = link->received_bytes(), bytes = BytesOf(into);
  bool lied = false;
  for (std::span<std::byte> part : into) {
    while (!part.empty() && !link->ended() && !lied) {
      co_await Wait(Until::kOffered, limits);
      if (link->ended()) break;
      const std::size_t piece = std::min(part.size(), UcxLink::kPieceBytes);
      lied = *link->offered() != piece;
      if (lied) break;
      link->Receive(part.first(piece));
      part = part.subspan(piece);
    }
  }
  if (lied) link->Close(true);
  co_await Wait(Until::kReceived, limits);
  const std::uint64_t received = link->received_bytes() - before;
  shared_->received_bytes += received;
  if (lied) co_return Fail(MakeError(Errc::kProtocol, "a piece of a payload has another length than it has to have"));
  if (received != bytes || guard_->cause() != nullptr) co_return Ended("receive a payload");
  co_return Status();
}

}  // namespace kvm::mesh
