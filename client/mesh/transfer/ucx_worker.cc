#include "client/mesh/transfer/ucx_worker.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <chrono>
#include <cstdlib>
#include <new>

#include "client/mesh/transfer/ucx_link.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

// Calls of one turn; other coroutines have theirs between two turns.
constexpr int kStepsOfTurn = 64;
constexpr std::chrono::seconds kStopTimeout{2};

struct Setting {
  const char* variable;
  const char* name;
  const char* value;
};
constexpr Setting kSettings[] = {
    {"UCX_TLS", "TLS", "^tcp"},
    // The receiver reads the sender's staging memory, and gives no right to write its own.
    {"UCX_RNDV_SCHEME", "RNDV_SCHEME", "get_zcopy"},
};

std::span<const std::byte> Bytes(const void* header, size_t length) noexcept { return {static_cast<const std::byte*>(header), length}; }

ucp_ep_h SenderOf(const ucp_am_recv_param_t* param) noexcept {
  return (param->recv_attr & UCP_AM_RECV_ATTR_FIELD_REPLY_EP) != 0 ? param->reply_ep : nullptr;
}

}  // namespace

Result<std::shared_ptr<UcxWorker>> UcxWorker::Start(asio::io_context& io, const tcp::endpoint& at) {
  Result<const UcxLibrary*> ucx = UcxLibrary::Load();
  if (!ucx) return ucx.error();
  std::shared_ptr<UcxWorker> out(new UcxWorker(io, **ucx));
  Status good = out->Create();
  if (good) good = out->Listen(at);
  if (!good) return good.error();
  out->Kick();
  return out;
}

UcxWorker::~UcxWorker() { Stop(); }

Status UcxWorker::Create() {
  const auto failed = [&](const char* what, ucs_status_t status) {
    return MakeError(Errc::kUnsupported, std::string("UCX: ") + what + ": " + ucx_.Text(status));
  };
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucx_.ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return failed("its settings", status);
  for (const Setting& setting : kSettings)
    if (std::getenv(setting.variable) == nullptr) static_cast<void>(ucx_.ucp_config_modify(config, setting.name, setting.value));
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  status = ucx_.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context_);
  ucx_.ucp_config_release(config);
  if (status != UCS_OK) return failed("start", status);
  ucp_worker_params_t worker{};
  worker.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker.thread_mode = UCS_THREAD_MODE_SINGLE;
  status = ucx_.ucp_worker_create(context_, &worker, &worker_);
  if (status != UCS_OK) return failed("worker", status);
  int events = -1;
  status = ucx_.ucp_worker_get_efd(worker_, &events);
  if (status != UCS_OK) return failed("event descriptor", status);
  boost::system::error_code error;
  events_.assign(events, error);
  if (error) return SystemError("UCX's event descriptor", error.value());
  for (const auto& [id, handler] : {std::pair{kGreetingId, &OnGreeting}, std::pair{kPieceId, &OnPiece}}) {
    ucp_am_handler_param_t param{};
    param.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG;
    param.id = id;
    param.cb = handler;
    param.arg = this;
    status = ucx_.ucp_worker_set_am_recv_handler(worker_, &param);
    if (status != UCS_OK) return failed("message handler", status);
  }
  return {};
}

Status UcxWorker::Listen(const tcp::endpoint& at) {
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr = {at.data(), static_cast<socklen_t>(at.size())};
  params.conn_handler = {&OnConnection, this};
  const ucs_status_t status = ucx_.ucp_listener_create(worker_, &params, &listener_);
  const std::string where = at.address().to_string() + ":" + std::to_string(at.port());
  if (status != UCS_OK) return MakeError(Errc::kSystem, "UCX: listen on " + where + ": " + ucx_.Text(status));
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  if (ucx_.ucp_listener_query(listener_, &attributes) != UCS_OK) return MakeError(Errc::kSystem, "UCX: " + where + ": no address");
  const auto* const family = reinterpret_cast<const sockaddr*>(&attributes.sockaddr);
  const std::size_t size = family->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  std::copy_n(reinterpret_cast<const std::byte*>(family), size, reinterpret_cast<std::byte*>(address_.data()));
  return {};
}

void UcxWorker::Stop() noexcept {
  if (listener_ != nullptr) ucx_.ucp_listener_destroy(std::exchange(listener_, nullptr));
  if (worker_ != nullptr) {
    const auto live = std::exchange(endpoints_, {});
    for (const auto& [endpoint, link] : live) Close(endpoint, true);
    const auto until = std::chrono::steady_clock::now() + kStopTimeout;
    while (ucx_.ucp_worker_progress(worker_) != 0 && std::chrono::steady_clock::now() < until) {
    }
    // Not closed: it is UCX's, which closes it with the worker.
    if (events_.is_open()) events_.release();
    ucx_.ucp_worker_destroy(std::exchange(worker_, nullptr));
  }
  if (context_ != nullptr) ucx_.ucp_cleanup(std::exchange(context_, nullptr));
}

void UcxWorker::Add(UcxLink& link) { links_[link.channel()] = &link; }

void UcxWorker::Remove(const UcxLink& link) noexcept {
  const auto found = links_.find(link.channel());
  if (found != links_.end() && found->second == &link) links_.erase(found);
}

ucp_ep_params_t UcxWorker::EndpointParams() noexcept {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_ERR_HANDLER | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {&OnFailure, this};
  return params;
}

Result<ucp_ep_h> UcxWorker::Connect(const tcp::endpoint& to, UcxLink& link) {
  if (worker_ == nullptr) return MakeError(Errc::kUnavailable, "UCX: stopped");
  ucp_ep_params_t params = EndpointParams();
  params.field_mask |= UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr = {to.data(), static_cast<socklen_t>(to.size())};
  ucp_ep_h endpoint = nullptr;
  const ucs_status_t status = ucx_.ucp_ep_create(worker_, &params, &endpoint);
  if (status != UCS_OK) return MakeError(Errc::kUnavailable, "UCX: connect: " + ucx_.Text(status));
  try {
    endpoints_[endpoint] = &link;
  } catch (...) {
    Close(endpoint, true);
    throw;
  }
  Kick();
  return endpoint;
}

void UcxWorker::Close(ucp_ep_h endpoint, bool force) noexcept {
  endpoints_.erase(endpoint);
  std::erase(strangers_, endpoint);
  std::erase(closing_, endpoint);
  if (worker_ == nullptr) return;
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = force ? UCP_EP_CLOSE_FLAG_FORCE : 0;
  const ucs_status_ptr_t request = ucx_.ucp_ep_close_nbx(endpoint, &param);
  if (UCS_PTR_IS_PTR(request)) ucx_.ucp_request_free(request);
  Kick();
}

void UcxWorker::CloseLater(ucp_ep_h endpoint) noexcept {
  try {
    closing_.push_back(endpoint);
  } catch (const std::bad_alloc&) {
    return;  // it stays in endpoints_ until Stop
  }
  Kick();
}

void UcxWorker::DrainUntil(const std::function<bool()>& done) noexcept {
  const auto until = std::chrono::steady_clock::now() + kStopTimeout;
  while (worker_ != nullptr && !done()) {
    ucx_.ucp_worker_progress(worker_);
    if (std::chrono::steady_clock::now() >= until) Stop();
  }
  Kick();
}

void UcxWorker::Kick() noexcept {
  if (scheduled_ || worker_ == nullptr) return;
  try {
    scheduled_ = true;
    asio::post(io_, [weak = weak_from_this()] {
      if (const std::shared_ptr<UcxWorker> self = weak.lock()) self->Turn();
    });
  } catch (const std::bad_alloc&) {
    scheduled_ = false;
  }
}

bool UcxWorker::WaitForEvents() noexcept {
  if (waiting_) return true;
  try {
    events_.async_wait(asio::posix::stream_descriptor::wait_read, [weak = weak_from_this()](boost::system::error_code error) {
      const std::shared_ptr<UcxWorker> self = weak.lock();
      if (!self) return;
      self->waiting_ = false;
      if (!error) self->Turn();
    });
    waiting_ = true;
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

void UcxWorker::Turn() noexcept {
  scheduled_ = false;
  if (worker_ == nullptr) return;
  while (!closing_.empty()) Close(closing_.front(), true);
  for (;;) {
    int steps = 0;
    while (steps < kStepsOfTurn && ucx_.ucp_worker_progress(worker_) != 0) ++steps;
    // Nothing is left to do and the descriptor will tell of the next event; or another turn.
    if (steps < kStepsOfTurn && ucx_.ucp_worker_arm(worker_) == UCS_OK && WaitForEvents()) return;
    Kick();
    if (scheduled_) return;
  }
}

void UcxWorker::OnConnection(ucp_conn_request_h request, void* self) noexcept {
  auto& worker = *static_cast<UcxWorker*>(self);
  try {
    worker.Accept(request);
  } catch (const std::bad_alloc&) {
    static_cast<void>(worker.ucx_.ucp_listener_reject(worker.listener_, request));
  }
}

void UcxWorker::Accept(ucp_conn_request_h request) {
  // All memory first: a request that UCX has made a connection of can't be rejected any more.
  std::unordered_map<ucp_ep_h, UcxLink*> one{{nullptr, nullptr}};
  auto place = one.extract(one.begin());
  endpoints_.reserve(endpoints_.size() + 1);
  strangers_.push_back(nullptr);
  ucp_ep_params_t params = EndpointParams();
  params.field_mask |= UCP_EP_PARAM_FIELD_CONN_REQUEST;
  params.conn_request = request;
  ucp_ep_h endpoint = nullptr;
  if (ucx_.ucp_ep_create(worker_, &params, &endpoint) != UCS_OK) {
    strangers_.pop_back();
    return;  // the request has been used up
  }
  strangers_.back() = endpoint;
  place.key() = endpoint;
  endpoints_.insert(std::move(place));
  if (strangers_.size() > kMaxStrangers) {
    CloseLater(strangers_.front());
    strangers_.pop_front();
  }
}

void UcxWorker::OnFailure(void* self, ucp_ep_h endpoint, ucs_status_t status) noexcept {
  auto& worker = *static_cast<UcxWorker*>(self);
  const auto found = worker.endpoints_.find(endpoint);
  if (found == worker.endpoints_.end()) return;
  if (found->second != nullptr) {
    found->second->Failed(status);
  } else {
    worker.CloseLater(endpoint);
  }
}

ucs_status_t UcxWorker::OnGreeting(void* self, const void* header, size_t header_length, void*, size_t length,
                                   const ucp_am_recv_param_t* param) noexcept {
  auto& worker = *static_cast<UcxWorker*>(self);
  const std::optional<UcxHeader> greeting = UcxHeader::Decode(Bytes(header, header_length));
  const auto endpoint = worker.endpoints_.find(SenderOf(param));
  if (!greeting || length != 0 || endpoint == worker.endpoints_.end()) return UCS_OK;
  const auto found = worker.links_.find(greeting->channel);
  if (found == worker.links_.end()) return UCS_OK;
  UcxLink& link = *found->second;
  if (endpoint->second == &link) {
    link.Opened(*greeting);
  } else if (endpoint->second == nullptr && link.Opens(*greeting)) {
    endpoint->second = &link;
    std::erase(worker.strangers_, endpoint->first);
    link.Attach(endpoint->first);
  }
  return UCS_OK;
}

ucs_status_t UcxWorker::OnPiece(void* self, const void* header, size_t header_length, void* data, size_t length,
                                const ucp_am_recv_param_t* param) noexcept {
  auto& worker = *static_cast<UcxWorker*>(self);
  const std::optional<UcxHeader> piece = UcxHeader::Decode(Bytes(header, header_length));
  const auto endpoint = worker.endpoints_.find(SenderOf(param));
  if (!piece || endpoint == worker.endpoints_.end() || endpoint->second == nullptr) return UCS_OK;
  // Only as an offer: UCX holds no bytes of it.
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0) return UCS_OK;
  return endpoint->second->Offered(*piece, data, length) ? UCS_INPROGRESS : UCS_OK;
}

}  // namespace kvm::mesh
