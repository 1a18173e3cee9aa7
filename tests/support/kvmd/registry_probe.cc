#include "tests/support/kvmd/registry_probe.h"

#include <utility>

#include "tests/catch.h"

namespace kvm::test {
namespace {

WireClient MustConnect(const std::string& socket_path) {
  Result<WireClient> client = WireClient::Connect(socket_path);
  KVM_REQUIRE_OK(client);
  return std::move(*client);
}

}  // namespace

Result<RegistryView> OpenRegistry(const Received& hello_reply) {
  if (hello_reply.fds.size() != 1) return MakeError(Errc::kProtocol, "no registry with the reply to hello");
  Result<MappedMemory> memory = MappedMemory::Attach(hello_reply.fds.front().get());
  if (!memory) return memory.error();
  return RegistryView::Open(std::move(*memory));
}

RegistryProbe::RegistryProbe(const std::string& socket_path) : connection_(MustConnect(socket_path)) {
  const Result<Received> hello = connection_.Hello("probe", kvmwire::OBSERVER, /*wants_payload=*/false);
  KVM_REQUIRE_OK(hello);
  Result<RegistryView> registry = OpenRegistry(*hello);
  KVM_REQUIRE_OK(registry);
  registry_ = std::move(*registry);
}

std::size_t RegistryProbe::RegionRows(pid_t pid) const {
  std::size_t count = 0;
  layout::RegionInfo info;
  for (std::uint32_t row = 0; row < registry_.region_rows(); ++row) {
    if (registry_.ReadRegion(row, info) && (pid == 0 || info.owner_pid == static_cast<std::uint32_t>(pid))) ++count;
  }
  return count;
}

std::uint64_t RegistryProbe::CountSlots() const {
  std::uint64_t count = 0;
  IndexEntry entry;
  for (std::uint64_t slot = 0; slot < registry_.index().slots(); ++slot) count += registry_.index().ReadSlot(slot, entry);
  return count;
}

kvmwire::StatusReply RegistryProbe::Status(bool clients) {
  Result<kvmwire::StatusReply> status = connection_.QueryStatus(clients);
  KVM_REQUIRE_OK(status);
  return std::move(*status);
}

}  // namespace kvm::test
