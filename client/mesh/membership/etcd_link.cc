#include "client/mesh/membership/etcd_link.h"

#include <algorithm>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <random>

#include "client/mesh/log/event_log.h"
#include "proto/base/text_files.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
namespace json = boost::json;
using std::chrono::milliseconds;

constexpr milliseconds kFirstPause{50};
constexpr std::size_t kMaxErrorText = 200;

// Codes of gRPC, as the gateway has them in its answers.
constexpr std::uint64_t kCodeNotFound = 5, kCodePermissionDenied = 7, kCodeUnauthenticated = 16;

Result<json::object> ParseObject(const std::string& text, const std::string& from) {
  boost::system::error_code error;
  json::value parsed = json::parse(json::string_view(text.data(), text.size()), error);
  if (error || !parsed.is_object()) return MakeError(Errc::kProtocol, from + ": an answer that is no JSON object");
  return std::move(parsed.get_object());
}

struct Refusal {
  std::uint64_t code = 0;
  std::string message;
};

Refusal ReadRefusal(const HttpAnswer& answer) {
  Refusal out;
  boost::system::error_code error;
  const json::value parsed = json::parse(json::string_view(answer.body.data(), answer.body.size()), error);
  if (error || !parsed.is_object()) return out;
  const json::value* const code = parsed.get_object().if_contains("code");
  if (code != nullptr && code->is_int64()) out.code = static_cast<std::uint64_t>(code->get_int64());
  const json::value* const message = parsed.get_object().if_contains("message");
  if (message != nullptr && message->is_string()) out.message = message->get_string().subview(0, kMaxErrorText);
  return out;
}

Error RefusedBy(const std::string& endpoint, const HttpAnswer& answer) {
  const Refusal refusal = ReadRefusal(answer);
  const std::string text = endpoint + ": HTTP " + std::to_string(answer.status) + (refusal.message.empty() ? "" : ": ") + refusal.message;
  if (refusal.code == kCodeNotFound) return MakeError(Errc::kNotFound, text);
  if (refusal.code == kCodePermissionDenied || refusal.code == kCodeUnauthenticated || answer.status == 401 || answer.status == 403)
    return MakeError(Errc::kPermissionDenied, text);
  return MakeError(answer.status >= 500 ? Errc::kUnavailable : Errc::kProtocol, text);
}

// Whether another token is to be asked for.
bool TokenIsOld(const HttpAnswer& answer) {
  if (answer.status < 400 || answer.status >= 500) return false;
  const Refusal refusal = ReadRefusal(answer);
  return refusal.code == kCodeUnauthenticated || refusal.message.find("auth store is old") != std::string::npos;
}

}  // namespace

Result<EtcdAccess> EtcdAccess::Load(const EtcdSettings& settings) {
  EtcdAccess out;
  bool any_tls = false;
  for (const std::string& url : settings.endpoints) {
    Result<EtcdEndpoint> endpoint = ParseEtcdUrl(url);
    if (!endpoint) return endpoint.error();
    any_tls = any_tls || endpoint->tls;
    out.endpoints.push_back(std::move(*endpoint));
  }
  if (any_tls) {
    Result<std::shared_ptr<asio::ssl::context>> tls = LoadEtcdTls(settings);
    if (!tls) return tls.error();
    out.tls = std::move(*tls);
  }
  if (settings.credentials.empty()) return out;
  const auto refused = [&](const std::string& why) {
    return MakeError(Errc::kInvalidArgument, "--etcd-credentials: " + settings.credentials + ": " + why);
  };
  const Result<std::string> text = ReadTextFile(settings.credentials);
  if (!text) return refused(text.error().ToString());
  const std::string line = text->substr(0, text->find_first_of("\r\n"));
  const std::size_t colon = line.find(':');
  if (colon == std::string::npos || colon == 0) return refused("USER:PASSWORD is needed in its first line");
  out.user = line.substr(0, colon);
  out.password = line.substr(colon + 1);
  return out;
}

EtcdLink::EtcdLink(asio::io_context& io, const EtcdAccess& access, std::string purpose, milliseconds longest_pause)
    : io_(io),
      access_(access),
      purpose_(std::move(purpose)),
      longest_pause_(std::max(longest_pause, kFirstPause)),
      pause_(io),
      chance_((std::uint64_t{std::random_device()()} << 32) ^ std::random_device()()) {
  // Not all nodes at the first endpoint.
  at_ = chance_.Below(access_.endpoints.size());
}

Awaitable<Status> EtcdLink::Connect(Time deadline) {
  if (connection_ && connection_->open()) co_return Status();
  connection_.emplace(io_, access_.endpoints[at_ % access_.endpoints.size()], access_.tls);
  co_return co_await connection_->Open(deadline);
}

Awaitable<Result<HttpAnswer>> EtcdLink::Exchange(HttpRequest request, bool stream, Time deadline) {
  const bool reused = connection_ && connection_->open();
  for (bool again = reused;; again = false) {
    Status connected = co_await Connect(deadline);
    if (!connected) co_return connected.error();
    HttpRequest copy = request;
    Result<HttpAnswer> answer = MakeError(Errc::kUnavailable, "");
    if (stream) {
      answer = co_await connection_->Begin(std::move(copy), deadline);
    } else {
      answer = co_await connection_->Post(std::move(copy), deadline);
    }
    // etcd closes connections that are idle.
    if (answer || !again || answer.error().code != Errc::kUnavailable) co_return answer;
  }
}

Awaitable<Status> EtcdLink::Authenticate(Time deadline) {
  HttpRequest request;
  request.path = "/v3/auth/authenticate";
  request.body = json::serialize(json::object{{"name", access_.user}, {"password", access_.password}});
  Result<HttpAnswer> answer = co_await Exchange(std::move(request), false, deadline);
  if (!answer) co_return answer.error();
  if (answer->status != 200) {
    const Error refused = RefusedBy(endpoint(), *answer);
    co_return MakeError(answer->status >= 500 ? refused.code : Errc::kPermissionDenied, refused.message);
  }
  Result<json::object> parsed = ParseObject(answer->body, endpoint());
  if (!parsed) co_return parsed.error();
  const json::value* const token = parsed->if_contains("token");
  constexpr std::size_t kMaxToken = 4096;
  const bool good = token != nullptr && token->is_string() && !token->get_string().empty() && token->get_string().size() <= kMaxToken &&
                    std::all_of(token->get_string().begin(), token->get_string().end(), [](char c) { return c > ' ' && c <= '~'; });
  if (!good) co_return MakeError(Errc::kProtocol, endpoint() + ": an authentication without a token");
  token_ = token->get_string().c_str();
  co_return Status();
}

Awaitable<Result<HttpAnswer>> EtcdLink::ExchangeAnyhow(std::string path, std::string body, bool stream, Time deadline) {
  for (bool again = true;; again = false) {
    if (!access_.user.empty() && token_.empty()) {
      Status known = co_await Authenticate(deadline);
      if (!known) co_return known.error();
    }
    HttpRequest request;
    request.path = path;
    request.body = body;
    request.authorization = token_;
    Result<HttpAnswer> answer = co_await Exchange(std::move(request), stream, deadline);
    if (!answer || token_.empty() || !again || !TokenIsOld(*answer)) co_return answer;
    token_.clear();
  }
}

Awaitable<Result<json::object>> EtcdLink::Call(std::string path, json::object request, Time deadline) {
  Result<HttpAnswer> answer = co_await ExchangeAnyhow(std::move(path), json::serialize(request), false, deadline);
  if (!answer) co_return answer.error();
  if (answer->status != 200) co_return RefusedBy(endpoint(), *answer);
  co_return ParseObject(answer->body, endpoint());
}

Awaitable<Status> EtcdLink::Begin(std::string path, json::object request, Time deadline) {
  Result<HttpAnswer> answer = co_await ExchangeAnyhow(std::move(path), json::serialize(request), true, deadline);
  if (!answer) co_return answer.error();
  if (answer->status != 200) co_return RefusedBy(endpoint(), *answer);
  co_return Status();
}

Awaitable<Result<json::object>> EtcdLink::Next(Time deadline) {
  if (!connection_) co_return MakeError(Errc::kUnavailable, endpoint() + ": not connected");
  Result<std::string> line = co_await connection_->NextLine(deadline);
  if (!line) co_return line.error();
  co_return ParseObject(*line, endpoint());
}

void EtcdLink::Worked() {
  if (!works_) LogEvent(LogLevel::kInfo, "etcd_connected", {{"for", purpose_}, {"endpoint", endpoint()}});
  works_ = true;
  lost_ = false;
  failures_ = 0;
  last_error_.clear();
}

Awaitable<void> EtcdLink::Failed(Error error) {
  last_error_ = error.message.substr(0, kMaxErrorText);
  if (!lost_) LogEvent(LogLevel::kWarn, "etcd_lost", {{"for", purpose_}, {"endpoint", endpoint()}, {"reason", last_error_}});
  lost_ = true;
  works_ = false;
  connection_.reset();
  token_.clear();  // it is of one endpoint's cluster, which may have lost it
  ++at_;
  const milliseconds full = std::min(longest_pause_, kFirstPause * (1u << std::min(failures_++, 10u)));
  pause_.expires_after(full / 2 + milliseconds(chance_.Below(static_cast<std::uint64_t>(full.count() / 2 + 1))));
  boost::system::error_code ignored;
  co_await pause_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

void EtcdLink::Interrupt() {
  pause_.cancel();
  if (connection_) connection_->Close();
}

}  // namespace kvm::mesh
