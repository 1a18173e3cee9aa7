#include "client/mesh/node/serving/accepting.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "client/mesh/log/event_log.h"

namespace kvm::mesh {
namespace {

namespace asio = boost::asio;

constexpr std::chrono::milliseconds kAcceptPause{100};

}  // namespace

void LogRefused(LineLimit& lines, std::string_view event, const std::string& from, const std::string& reason) {
  if (const auto left_out = lines.Take()) LogEvent(LogLevel::kWarn, event, {{"from", from}, {"reason", reason}, {"left_out", *left_out}});
}

Awaitable<void> PauseAccepting(asio::io_context& io) {
  asio::steady_timer timer(io, kAcceptPause);
  boost::system::error_code ignored;
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

}  // namespace kvm::mesh
