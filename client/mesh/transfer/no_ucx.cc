#include "client/mesh/transfer/make_ucx.h"

namespace kvm::mesh {

Status LoadUcx() { return MakeError(Errc::kUnsupported, "this kvmd-mesh was built without UCX (libucx-dev)"); }

Result<std::unique_ptr<Transfer>> MakeUcxTransfer(boost::asio::io_context&, TcpTransfer&, const boost::asio::ip::tcp::endpoint&) {
  return LoadUcx().error();
}

}  // namespace kvm::mesh
