// The importer's side of an exporter process.
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <cstdlib>

#include "cuda/devices.h"
#include "tests/gpu/exporter.h"
#include "tests/gpu/exporter_wire.h"

extern char** environ;

namespace kvm::test {

ExporterProcess::ExporterProcess() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
  socket_.Reset(ends[0]);
  // dup2 onto a fixed number drops close-on-exec.
  constexpr int kChildEnd = 100;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], kChildEnd);
  const std::string number = std::to_string(kChildEnd);
  const char* arguments[] = {"gpu_exporter", "--child", "gpu_exporter", number.c_str(), nullptr};
  const int failed = ::posix_spawn(&pid_, "/proc/self/exe", &actions, nullptr, const_cast<char**>(arguments), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  if (failed != 0) std::abort();
}

ExporterProcess::~ExporterProcess() {
  socket_.Reset();
  int status = 0;
  if (pid_ > 0) ::waitpid(pid_, &status, 0);
}

void ExporterProcess::Kill() {
  int status = 0;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, &status, 0);
  pid_ = -1;
}

std::vector<PeerFd> ExporterProcess::Call(const std::string& command, std::string& reply) {
  FrameReader reader;
  std::optional<Frame> frame;
  if (Send(socket_.get(), command, {})) frame = Receive(socket_.get(), reader);
  if (!frame) {
    reply = Writer().PutText("the exporter process has ended").bytes();
    return {};
  }
  reply = std::move(frame->payload);
  return std::move(frame->fds);
}

Result<ExportedRegion> ExporterProcess::Open(const ExportOptions& options) {
  Writer command;
  command.Put(Op::kOpen)
      .Put(options.ordinal)
      .Put(options.kind)
      .Put(options.one_allocation)
      .Put(options.fill)
      .Put(options.geometry.block_count);
  command.Put(static_cast<std::uint64_t>(options.geometry.parts.size()));
  for (const GeometryPart& part : options.geometry.parts) command.Put(part);
  command.Put(static_cast<std::uint64_t>(options.segment_bytes.size()));
  for (const std::uint64_t bytes : options.segment_bytes) command.Put(bytes);
  std::string reply;
  std::vector<PeerFd> fds = Call(command.bytes(), reply);
  Reader outer(reply);
  if (const std::string error = outer.TakeText(); !error.empty()) return MakeError(Errc::kSystem, "exporter: " + error);
  const std::string body = outer.TakeText();
  Reader reader(body);
  ExportedRegion region;
  region.origin.device = reader.Take<DeviceUuid>();
  region.origin.kind = reader.Take<layout::HandleKind>();
  const auto segments = reader.Take<std::uint64_t>();
  for (std::uint64_t i = 0; i < segments; ++i) {
    SegmentHandle handle;
    handle.size_bytes = reader.Take<std::uint64_t>();
    handle.handle_offset = reader.Take<std::uint64_t>();
    handle.allocation = reader.Take<std::uint64_t>();
    handle.allocation_bytes = reader.Take<std::uint64_t>();
    handle.handle = reader.TakeText();
    if (fds.size() > i + 1) handle.fd = std::move(fds[i + 1]);
    region.segments.push_back(std::move(handle));
  }
  Result<PeerGenerations> generations = MapGenerations(fds.at(0).get(), options.geometry.block_count);
  if (!generations) return generations.error();
  region.generations = std::move(*generations);
  region.generation_fd = std::move(fds[0]);
  return region;
}

void ExporterProcess::StartRewriting() {
  std::string reply;
  Call(Writer().Put(Op::kStart).bytes(), reply);
}

std::uint64_t ExporterProcess::StopRewriting() {
  std::string reply;
  Call(Writer().Put(Op::kStop).bytes(), reply);
  Reader reader(reply);
  return reader.TakeText().empty() ? reader.Take<std::uint64_t>() : 0;
}

void ExporterProcess::Rewrite(const std::vector<std::uint32_t>& blocks) {
  Writer command;
  command.Put(Op::kRewrite).Put(static_cast<std::uint64_t>(blocks.size()));
  for (const std::uint32_t block : blocks) command.Put(block);
  std::string reply;
  Call(command.bytes(), reply);
}

Result<std::string> ExporterProcess::Reallocate(std::uint64_t& allocation) {
  std::string reply;
  Call(Writer().Put(Op::kReallocate).bytes(), reply);
  Reader reader(reply);
  if (const std::string error = reader.TakeText(); !error.empty()) return MakeError(Errc::kSystem, "exporter: " + error);
  std::string handle = reader.TakeText();
  allocation = reader.Take<std::uint64_t>();
  return handle;
}

double ExporterProcess::Gemm(double seconds) {
  std::string reply;
  Call(Writer().Put(Op::kGemm).Put(seconds).bytes(), reply);
  Reader reader(reply);
  return reader.TakeText().empty() ? reader.Take<double>() : 0.0;
}

int UsableGpus(std::string& why) {
  const Result<std::vector<DeviceInfo>> devices = ListDevices();
  if (!devices) {
    why = devices.error().message;
    return 0;
  }
  int usable = 0;
  for (const DeviceInfo& device : *devices) usable += device.unusable.empty();
  if (usable == 0) why = "no GPU of compute capability 8.0 or more";
  return usable;
}

}  // namespace kvm::test
