// The sockets that kvctl exporter opens: a Unix socket with a mode, and loopback addresses only.
#include <sys/socket.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "client/kvctl/exporter/listening_sockets.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace {

using kvm::Errc;
using kvm::Status;
using kvm::ctl::ListeningSockets;
namespace fs = std::filesystem;

Errc CodeOf(const Status& status) {
  REQUIRE_FALSE(status);
  return status.error().code;
}

}  // namespace

TEST_CASE("Listening: the socket file has its mode, and goes with its owner", "[unit]") {
  kvm::test::TempDir folder;
  const std::string path = folder / "exporter.sock";
  {
    ListeningSockets sockets;
    KVM_REQUIRE_OK(sockets.ListenOnPath(path, "0640"));
    struct stat info {};
    REQUIRE(::stat(path.c_str(), &info) == 0);
    CHECK((info.st_mode & 0777) == 0640);
  }
  CHECK_FALSE(fs::exists(path));
}

TEST_CASE("Listening: a socket file without a process is replaced, one with a process and other files are not", "[unit]") {
  kvm::test::TempDir folder;
  const std::string path = folder / "exporter.sock", saved = folder / "saved";
  {
    ListeningSockets sockets;
    KVM_REQUIRE_OK(sockets.ListenOnPath(path, "0660"));
    ListeningSockets second;
    CHECK(CodeOf(second.ListenOnPath(path, "0660")) == Errc::kAlreadyExists);
    CHECK(fs::exists(path));
    fs::rename(path, saved);
  }
  fs::rename(saved, path);
  ListeningSockets next;
  KVM_REQUIRE_OK(next.ListenOnPath(path, "0660"));
  const std::string file = folder / "file";
  std::ofstream(file) << "kept";
  ListeningSockets other;
  CHECK(CodeOf(other.ListenOnPath(file, "0660")) == Errc::kAlreadyExists);
  CHECK(fs::file_size(file) == 4);
}

TEST_CASE("Listening: TCP is served on loopback addresses only", "[unit]") {
  ListeningSockets sockets;
  KVM_REQUIRE_OK(sockets.ListenOnTcp("127.0.0.1:0"));
  CHECK(sockets.names().front().starts_with("http://127.0.0.1:"));
  CHECK_FALSE(sockets.names().front().ends_with(":0"));
  for (const char* wrong : {"0.0.0.0:9464", "[::]:9464", "192.168.0.1:9464", "localhost:9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:70000",
                            "127.0.0.1:94x", ":9464", "[::ffff:10.0.0.1]:9464"}) {
    INFO(wrong);
    CHECK(CodeOf(sockets.ListenOnTcp(wrong)) == Errc::kInvalidArgument);
  }
}

TEST_CASE("Listening: modes and paths that can't be are refused", "[unit]") {
  ListeningSockets sockets;
  CHECK(CodeOf(sockets.ListenOnPath("/tmp/" + std::string(200, 'x'), "0660")) == Errc::kInvalidArgument);
  for (const char* mode : {"", "0999", "rw", "01777", "0660x"}) {
    INFO(mode);
    CHECK(CodeOf(sockets.ListenOnPath("/nonexistent/exporter.sock", mode)) == Errc::kInvalidArgument);
  }
}
