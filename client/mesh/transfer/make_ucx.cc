#include "client/mesh/transfer/make_ucx.h"

#include "client/mesh/transfer/ucx_transfer.h"

namespace kvm::mesh {

Status LoadUcx() {
  const Result<const UcxLibrary*> library = UcxLibrary::Load();
  return library ? Status() : Status(library.error());
}

Result<std::unique_ptr<Transfer>> MakeUcxTransfer(boost::asio::io_context& io, TcpTransfer& tcp, const boost::asio::ip::tcp::endpoint& at) {
  Result<std::shared_ptr<UcxWorker>> worker = UcxWorker::Start(io, at);
  if (!worker) return worker.error();
  return std::unique_ptr<Transfer>(std::make_unique<UcxTransfer>(tcp, std::move(*worker)));
}

}  // namespace kvm::mesh
