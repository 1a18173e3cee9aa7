// HttpConnection: one HTTP/1.1 connection to an etcd endpoint, with TLS or without, for requests
// that are answered as a whole, or with a stream of lines.
//
// What the server may send is bounded: header, answer, and line. After an error the connection is
// closed; another one has to be opened. One call at a time, of the io_context's thread. The calls
// refer to the object until they have ended.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <memory>
#include <optional>
#include <string>

#include "client/mesh/membership/etcd_settings.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

struct HttpRequest {
  std::string path;
  std::string body;           // JSON
  std::string authorization;  // value of the header; empty: none
};

struct HttpAnswer {
  unsigned status = 0;
  std::string body;
};

class HttpConnection {
 public:
  static constexpr std::size_t kMaxHeaderBytes = 16u << 10;
  static constexpr std::size_t kMaxAnswerBytes = 4u << 20;
  static constexpr std::size_t kMaxLineBytes = 4u << 20;

  // `tls`: for endpoints with https; null is allowed for others.
  HttpConnection(boost::asio::io_context& io, EtcdEndpoint endpoint, std::shared_ptr<boost::asio::ssl::context> tls);
  ~HttpConnection() { Close(); }
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  // kUnavailable, kDeadlineExceeded. kPermissionDenied: TLS does not accept the server.
  // A name is resolved, which takes as long as the system's resolver does, whatever the deadline.
  Awaitable<Status> Open(Time deadline);
  // The errors of Open, and kProtocol: no HTTP, or more bytes than are allowed.
  Awaitable<Result<HttpAnswer>> Post(HttpRequest request, Time deadline);
  // The same, but of an answer with status 200 only the header; its lines come from NextLine.
  Awaitable<Result<HttpAnswer>> Begin(HttpRequest request, Time deadline);
  // Without its end; lines of a stream that Begin began. kUnavailable: also at the stream's end.
  Awaitable<Result<std::string>> NextLine(Time deadline);

  void Close() noexcept;
  bool open() const noexcept { return open_; }

 private:
  using Tcp = boost::beast::tcp_stream;
  using Tls = boost::asio::ssl::stream<Tcp>;
  using Parser = boost::beast::http::response_parser<boost::beast::http::string_body>;

  Tcp& tcp() noexcept { return tls_ ? tls_->next_layer() : *plain_; }
  Awaitable<Status> Send(HttpRequest request, Time deadline);
  Awaitable<Status> Read(bool whole, Time deadline);
  Error Fail(const boost::system::error_code& error, const char* what);

  boost::asio::io_context& io_;
  const EtcdEndpoint endpoint_;
  const std::shared_ptr<boost::asio::ssl::context> tls_context_;
  std::optional<Tcp> plain_;
  std::optional<Tls> tls_;
  boost::beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  bool open_ = false;
};

// For endpoints with https. kInvalidArgument, the option and file named.
[[nodiscard]] Result<std::shared_ptr<boost::asio::ssl::context>> LoadEtcdTls(const EtcdSettings& settings);

}  // namespace kvm::mesh
