// What those that take connections do alike with the ones that they don't take. Of the io_context's
// thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <string>
#include <string_view>

#include "client/mesh/log/line_limit.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

inline constexpr std::chrono::seconds kRefusedPause{10};  // between two lines of an event

// An event of which there may be many, since others cause it.
void LogRefused(LineLimit& lines, std::string_view event, const std::string& from, const std::string& reason);

// After a connection that the kernel refused, mostly for lack of descriptors.
Awaitable<void> PauseAccepting(boost::asio::io_context& io);

}  // namespace kvm::mesh
