#include "client/mesh/transfer/ucx_link.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <new>
#include <utility>

namespace kvm::mesh {
namespace {

UcxTicketUse PiecesTo(UcxLink::Role role) noexcept {
  return role == UcxLink::Role::kAccepting ? UcxTicketUse::kToAccepting : UcxTicketUse::kToConnecting;
}

UcxLink::Role Other(UcxLink::Role role) noexcept {
  return role == UcxLink::Role::kAccepting ? UcxLink::Role::kConnecting : UcxLink::Role::kAccepting;
}

}  // namespace

// What UCX does with memory of a caller, or with a header, until it says that it has ended.
struct UcxLink::Operation {
  enum class Kind : std::uint8_t { kGreeting, kSend, kReceive };

  std::shared_ptr<UcxLink> link;
  Kind kind;
  std::size_t bytes = 0;
  UcxHeaderBytes header{};
};

UcxLink::UcxLink(std::shared_ptr<UcxWorker> worker, UcxBinding binding, Role role)
    : worker_(std::move(worker)), binding_(binding), role_(role), changed_(worker_->io()) {
  worker_->Add(*this);
}

UcxLink::~UcxLink() { Close(false); }

Status UcxLink::Connect(const boost::asio::ip::tcp::endpoint& to) {
  Result<ucp_ep_h> endpoint = worker_->Connect(to, *this);
  if (!endpoint) return endpoint.error();
  endpoint_ = *endpoint;
  SendGreeting(UcxTicketUse::kOpen);
  return {};
}

void UcxLink::SendGreeting(UcxTicketUse use) {
  auto operation = std::make_unique<Operation>(Operation{shared_from_this(), Operation::Kind::kGreeting});
  operation->header = binding_.Header(use, 0).Encode();
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_EAGER | UCP_AM_SEND_FLAG_REPLY;
  param.cb.send = &OnSent;
  param.user_data = operation.get();
  const ucs_status_ptr_t request = worker_->library().ucp_am_send_nbx(endpoint_, UcxWorker::kGreetingId, operation->header.data(),
                                                                      operation->header.size(), nullptr, 0, &param);
  Begin(std::move(operation), request);
}

bool UcxLink::Opens(const UcxHeader& greeting) const {
  return state_ == State::kWaiting && role_ == Role::kAccepting && endpoint_ == nullptr && greeting.number == 0 &&
         binding_.Matches(greeting, UcxTicketUse::kOpen);
}

void UcxLink::Attach(ucp_ep_h endpoint) noexcept {
  endpoint_ = endpoint;
  state_ = State::kOpen;
  try {
    SendGreeting(UcxTicketUse::kOpened);
  } catch (const std::bad_alloc&) {
    Failed(UCS_ERR_NO_MEMORY);
  }
  Notify();
}

void UcxLink::Opened(const UcxHeader& greeting) {
  if (state_ != State::kWaiting || role_ != Role::kConnecting || greeting.number != 0) return;
  if (!binding_.Matches(greeting, UcxTicketUse::kOpened)) return;
  state_ = State::kOpen;
  Notify();
}

void UcxLink::Send(std::span<const std::byte> piece) {
  auto operation = std::make_unique<Operation>(Operation{shared_from_this(), Operation::Kind::kSend, piece.size()});
  operation->header = binding_.Header(PiecesTo(Other(role_)), next_sent_++).Encode();
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_AM_SEND_FLAG_RNDV | UCP_AM_SEND_FLAG_REPLY;
  param.cb.send = &OnSent;
  param.user_data = operation.get();
  ++sending_;
  const ucs_status_ptr_t request = worker_->library().ucp_am_send_nbx(endpoint_, UcxWorker::kPieceId, operation->header.data(),
                                                                      operation->header.size(), piece.data(), piece.size(), &param);
  Begin(std::move(operation), request);
}

bool UcxLink::Offered(const UcxHeader& piece, void* data, std::size_t bytes) {
  const bool expected = state_ == State::kOpen && piece.channel == binding_.channel() && bytes > 0 && bytes <= kPieceBytes &&
                        piece.number >= next_received_ && piece.number - next_received_ < kWindow &&
                        offers_[piece.number % kWindow].data == nullptr && binding_.Matches(piece, PiecesTo(role_));
  if (!expected) return false;
  offers_[piece.number % kWindow] = {data, bytes};
  Notify();
  return true;
}

std::optional<std::size_t> UcxLink::offered() const noexcept {
  const Offer& next = offers_[next_received_ % kWindow];
  if (next.data == nullptr) return std::nullopt;
  return next.bytes;
}

void UcxLink::Receive(std::span<std::byte> into) {
  auto operation = std::make_unique<Operation>(Operation{shared_from_this(), Operation::Kind::kReceive, into.size()});
  const Offer offer = std::exchange(offers_[next_received_++ % kWindow], {});
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.recv_am = &OnReceived;
  param.user_data = operation.get();
  ++receiving_;
  const ucs_status_ptr_t request = worker_->library().ucp_am_recv_data_nbx(worker_->handle(), offer.data, into.data(), into.size(), &param);
  Begin(std::move(operation), request);
}

// UCX calls back only for a request that it has returned; then the operation is the callback's.
void UcxLink::Begin(std::unique_ptr<Operation> operation, ucs_status_ptr_t request) {
  if (UCS_PTR_IS_PTR(request)) {
    static_cast<void>(operation.release());
  } else {
    End(*operation, UCS_PTR_RAW_STATUS(request));
  }
  worker_->Kick();
}

void UcxLink::End(const Operation& operation, ucs_status_t status) noexcept {
  if (operation.kind == Operation::Kind::kSend) --sending_;
  if (operation.kind == Operation::Kind::kReceive) --receiving_;
  if (status != UCS_OK) {
    Failed(status);
    return;
  }
  if (operation.kind == Operation::Kind::kSend) sent_bytes_ += operation.bytes;
  if (operation.kind == Operation::Kind::kReceive) received_bytes_ += operation.bytes;
  Notify();
}

void UcxLink::OnSent(void* request, ucs_status_t status, void* operation) noexcept {
  const std::unique_ptr<Operation> ended(static_cast<Operation*>(operation));
  const std::shared_ptr<UcxLink> link = ended->link;
  link->worker_->library().ucp_request_free(request);
  link->End(*ended, status);
}

void UcxLink::OnReceived(void* request, ucs_status_t status, std::size_t bytes, void* operation) noexcept {
  const bool whole = status != UCS_OK || bytes == static_cast<Operation*>(operation)->bytes;
  OnSent(request, whole ? status : UCS_ERR_MESSAGE_TRUNCATED, operation);
}

// Inside a callback of UCX, so that the connection is closed later, by Close.
void UcxLink::Failed(ucs_status_t status) noexcept {
  if (state_ != State::kEnded) {
    state_ = State::kEnded;
    failure_ = status;
  }
  Notify();
}

Awaitable<void> UcxLink::Changed(Time until) {
  changed_.expires_at(until);
  boost::system::error_code ignored;
  co_await changed_.async_wait(boost::asio::redirect_error(boost::asio::use_awaitable, ignored));
}

void UcxLink::ReleaseOffers() noexcept {
  for (Offer& offer : offers_) {
    const Offer released = std::exchange(offer, {});
    if (released.data != nullptr && worker_->handle() != nullptr) worker_->library().ucp_am_data_release(worker_->handle(), released.data);
  }
}

void UcxLink::Close(bool force) noexcept {
  worker_->Remove(*this);
  ReleaseOffers();
  if (endpoint_ != nullptr) worker_->Close(std::exchange(endpoint_, nullptr), force || failure_ != UCS_OK || sending_ + receiving_ > 0);
  state_ = State::kEnded;
  Notify();
}

void UcxLink::CloseNow() noexcept {
  Close(true);
  worker_->DrainUntil([this] { return sending_ + receiving_ == 0; });
}

}  // namespace kvm::mesh
