// The transfer over UCX where this program was built with it; elsewhere (no_ucx.cc) an error that
// says so.
#pragma once

#include <boost/asio/io_context.hpp>
#include <memory>

#include "client/mesh/transfer/tcp_transfer.h"
#include "client/mesh/transfer/transfer.h"

namespace kvm::mesh {

// Before other threads run, since UCX's settings are put into the environment. kUnsupported: UCX is
// not there.
[[nodiscard]] Status LoadUcx();
// `tcp` carries the messages, and outlives it. `at`: where UCX listens; port 0: one that the kernel
// chooses. kUnsupported, kSystem: as UcxWorker::Start.
[[nodiscard]] Result<std::unique_ptr<Transfer>> MakeUcxTransfer(boost::asio::io_context& io, TcpTransfer& tcp,
                                                                const boost::asio::ip::tcp::endpoint& at);

}  // namespace kvm::mesh
