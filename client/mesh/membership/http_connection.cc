#include "client/mesh/membership/http_connection.h"

#include <openssl/ssl.h>

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/host_name_verification.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/write.hpp>

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
namespace ssl = asio::ssl;
using asio::ip::tcp;

using Endpoints = std::vector<tcp::endpoint>;

}  // namespace

HttpConnection::HttpConnection(asio::io_context& io, EtcdEndpoint endpoint, std::shared_ptr<ssl::context> tls)
    : io_(io), endpoint_(std::move(endpoint)), tls_context_(std::move(tls)), buffer_(kMaxHeaderBytes) {}

void HttpConnection::Close() noexcept {
  open_ = false;
  if (tls_ || plain_) tcp().close();
}

Error HttpConnection::Fail(const boost::system::error_code& error, const char* what) {
  Close();
  const std::string text = endpoint_.url + ": " + what + ": ";
  if (error == beast::error::timeout) return MakeError(Errc::kDeadlineExceeded, text + "no answer in time");
  const bool ended = error == http::error::end_of_stream || error == http::error::partial_message;
  if (error.category() == http::make_error_code(http::error::bad_version).category() && !ended)
    return MakeError(Errc::kProtocol, text + error.message());
  return MakeError(Errc::kUnavailable, text + error.message());
}

Awaitable<Status> HttpConnection::Open(Time deadline) {
  Close();
  buffer_.clear();
  parser_.reset();
  tls_.reset();
  plain_.reset();
  boost::system::error_code error;
  Endpoints endpoints;
  if (endpoint_.numeric()) {
    endpoints.emplace_back(asio::ip::make_address(endpoint_.host), static_cast<std::uint16_t>(std::stoul(endpoint_.port)));
  } else {
    tcp::resolver resolver(io_);
    const auto found = co_await resolver.async_resolve(endpoint_.host, endpoint_.port, tcp::resolver::numeric_service,
                                                       asio::redirect_error(asio::use_awaitable, error));
    if (error) co_return Fail(error, "resolve");
    for (const auto& each : found) endpoints.push_back(each.endpoint());
  }
  if (endpoint_.tls) {
    if (!tls_context_) co_return MakeError(Errc::kInvalidArgument, endpoint_.url + ": TLS is not set up");
    tls_.emplace(io_, *tls_context_);
  } else {
    plain_.emplace(io_);
  }
  tcp().expires_at(deadline);
  co_await tcp().async_connect(endpoints, asio::redirect_error(asio::use_awaitable, error));
  if (error) co_return Fail(error, "connect");
  tcp().socket().set_option(tcp::no_delay(true), error);
  tcp().socket().set_option(asio::socket_base::keep_alive(true), error);
  if (tls_) {
    tls_->set_verify_callback(ssl::host_name_verification(endpoint_.host), error);
    if (!error && !endpoint_.numeric()) SSL_set_tlsext_host_name(tls_->native_handle(), endpoint_.host.c_str());
    if (!error) co_await tls_->async_handshake(ssl::stream_base::client, asio::redirect_error(asio::use_awaitable, error));
    const long verified = SSL_get_verify_result(tls_->native_handle());
    if (error && verified != X509_V_OK) {
      Close();
      co_return MakeError(Errc::kPermissionDenied, endpoint_.url + ": TLS: " + X509_verify_cert_error_string(verified));
    }
    if (error) co_return Fail(error, "TLS");
  }
  open_ = true;
  co_return Status();
}

Awaitable<Status> HttpConnection::Send(HttpRequest request, Time deadline) {
  if (!open_) co_return MakeError(Errc::kUnavailable, endpoint_.url + ": not connected");
  http::request<http::string_body> message(http::verb::post, request.path, 11);
  const std::string host = endpoint_.host.find(':') == std::string::npos ? endpoint_.host : "[" + endpoint_.host + "]";
  message.set(http::field::host, host + ":" + endpoint_.port);
  message.set(http::field::content_type, "application/json");
  if (!request.authorization.empty()) message.set(http::field::authorization, request.authorization);
  // A watch at a member of etcd that has lost its leader is to end.
  message.set("Grpc-Metadata-hasleader", "true");
  message.body() = std::move(request.body);
  message.prepare_payload();
  boost::system::error_code error;
  tcp().expires_at(deadline);
  if (tls_) {
    co_await http::async_write(*tls_, message, asio::redirect_error(asio::use_awaitable, error));
  } else {
    co_await http::async_write(*plain_, message, asio::redirect_error(asio::use_awaitable, error));
  }
  if (error) co_return Fail(error, "send");
  co_return Status();
}

// The header of an answer, and all of its body if `whole`.
Awaitable<Status> HttpConnection::Read(bool whole, Time deadline) {
  boost::system::error_code error;
  tcp().expires_at(deadline);
  if (whole && tls_) {
    co_await http::async_read(*tls_, buffer_, *parser_, asio::redirect_error(asio::use_awaitable, error));
  } else if (whole) {
    co_await http::async_read(*plain_, buffer_, *parser_, asio::redirect_error(asio::use_awaitable, error));
  } else if (tls_) {
    co_await http::async_read_header(*tls_, buffer_, *parser_, asio::redirect_error(asio::use_awaitable, error));
  } else {
    co_await http::async_read_header(*plain_, buffer_, *parser_, asio::redirect_error(asio::use_awaitable, error));
  }
  if (error) co_return Fail(error, "receive");
  co_return Status();
}

Awaitable<Result<HttpAnswer>> HttpConnection::Post(HttpRequest request, Time deadline) {
  Status sent = co_await Send(std::move(request), deadline);
  if (!sent) co_return sent.error();
  parser_.emplace();
  parser_->header_limit(kMaxHeaderBytes);
  parser_->body_limit(kMaxAnswerBytes);
  Status read = co_await Read(true, deadline);
  if (!read) co_return read.error();
  HttpAnswer out{parser_->get().result_int(), std::move(parser_->get().body())};
  if (!parser_->keep_alive()) Close();
  parser_.reset();
  co_return out;
}

Awaitable<Result<HttpAnswer>> HttpConnection::Begin(HttpRequest request, Time deadline) {
  Status sent = co_await Send(std::move(request), deadline);
  if (!sent) co_return sent.error();
  parser_.emplace();
  parser_->header_limit(kMaxHeaderBytes);
  // The whole of a stream has no bound; a line of it has, and so has the body of a refusal.
  parser_->body_limit(boost::none);
  Status read = co_await Read(false, deadline);
  if (!read) co_return read.error();
  // Memory for a body with a length is taken as a whole.
  const boost::optional<std::uint64_t> length = parser_->content_length();
  if (length && *length > kMaxAnswerBytes) {
    Close();
    co_return MakeError(Errc::kProtocol, endpoint_.url + ": an answer of " + std::to_string(*length) + " bytes");
  }
  HttpAnswer out{parser_->get().result_int(), {}};
  if (out.status != 200) {
    parser_->body_limit(kMaxAnswerBytes);
    read = co_await Read(true, deadline);
    if (!read) co_return read.error();
    out.body = std::move(parser_->get().body());
    Close();
  }
  co_return out;
}

Awaitable<Result<std::string>> HttpConnection::NextLine(Time deadline) {
  for (std::size_t searched = 0;;) {
    if (!open_ || !parser_) co_return MakeError(Errc::kUnavailable, endpoint_.url + ": not connected");
    std::string& body = parser_->get().body();
    const std::size_t end = body.find('\n', searched);
    if (end != std::string::npos) {
      std::string line = body.substr(0, end);
      body.erase(0, end + 1);
      co_return line;
    }
    searched = body.size();
    if (body.size() > kMaxLineBytes) {
      Close();
      co_return MakeError(Errc::kProtocol, endpoint_.url + ": a line of more than " + std::to_string(kMaxLineBytes) + " bytes");
    }
    if (parser_->is_done()) {
      Close();
      co_return MakeError(Errc::kUnavailable, endpoint_.url + ": the stream has ended");
    }
    boost::system::error_code error;
    tcp().expires_at(deadline);
    if (tls_) {
      co_await http::async_read_some(*tls_, buffer_, *parser_, asio::redirect_error(asio::use_awaitable, error));
    } else {
      co_await http::async_read_some(*plain_, buffer_, *parser_, asio::redirect_error(asio::use_awaitable, error));
    }
    if (error) co_return Fail(error, "receive");
  }
}

Result<std::shared_ptr<ssl::context>> LoadEtcdTls(const EtcdSettings& settings) {
  const auto refused = [](const std::string& option, const std::string& file, const std::string& why) {
    return MakeError(Errc::kInvalidArgument, option + ": " + file + ": " + why);
  };
  auto out = std::make_shared<ssl::context>(ssl::context::tls_client);
  boost::system::error_code error;
  SSL_CTX_set_min_proto_version(out->native_handle(), TLS1_2_VERSION);
  out->set_verify_mode(ssl::verify_peer, error);
  if (settings.authority.empty()) {
    if (!error) out->set_default_verify_paths(error);
    if (error) return refused("--etcd-ca", "the system's authorities", error.message());
  } else {
    if (!error) out->load_verify_file(settings.authority, error);
    if (error) return refused("--etcd-ca", settings.authority, error.message());
  }
  if (settings.certificate.empty()) return out;
  out->use_certificate_chain_file(settings.certificate, error);
  if (error) return refused("--etcd-cert", settings.certificate, error.message());
  // No question for a passphrase on a terminal: a key that is encrypted is refused.
  out->set_password_callback([](std::size_t, ssl::context::password_purpose) { return std::string(); }, error);
  if (!error) out->use_private_key_file(settings.key, ssl::context::pem, error);
  if (error) return refused("--etcd-key", settings.key, error.message());
  if (SSL_CTX_check_private_key(out->native_handle()) != 1)
    return refused("--etcd-key", settings.key, "it is not the key of " + settings.certificate);
  return out;
}

}  // namespace kvm::mesh
