// Which sockets of kvmd-mesh processes a scrape asks.
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "client/kvctl/exporter/mesh_sockets.h"
#include "proto/base/unique_fd.h"
#include "tests/catch.h"
#include "tests/support/process/temp_dir.h"

namespace {

using kvm::UniqueFd;
using kvm::ctl::MeshSockets;

void MakeSocket(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  REQUIRE(path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, path.c_str(), path.size());
  const UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
}

}  // namespace

TEST_CASE("Mesh sockets: those that are named and those in the directory, each once, as they come", "[unit]") {
  const kvm::test::TempDir folder;
  MeshSockets sockets({"/named.sock", folder / "1.sock"}, folder.path());
  CHECK(sockets.Find() == std::vector<std::string>{"/named.sock", folder / "1.sock"});
  for (const char* name : {"2.sock", "1.sock"}) MakeSocket(folder / name);
  std::ofstream(folder / "3.sock") << "no socket";
  CHECK(sockets.Find() == std::vector<std::string>{"/named.sock", folder / "1.sock", folder / "2.sock"});
  CHECK(MeshSockets({}, folder / "nowhere").Find().empty());
  CHECK(MeshSockets({}, "").Find().empty());
}

TEST_CASE("Mesh sockets: of a directory with more than may be asked, the first ones", "[unit]") {
  const kvm::test::TempDir folder;
  for (std::size_t i = 0; i < MeshSockets::kMostFound + 5; ++i) MakeSocket(folder / std::to_string(1000 + i));
  const std::vector<std::string> found = MeshSockets({}, folder.path()).Find();
  REQUIRE(found.size() == MeshSockets::kMostFound);
  CHECK(std::is_sorted(found.begin(), found.end()));
  CHECK(found.front() == folder / "1000");
}
