// Which configurations kvmd-mesh refuses, and what it makes of the shape that a peer names.
#include "client/mesh/memory/shape.h"
#include "client/mesh/node/state/config.h"
#include "proto/mesh/mesh_identity.h"
#include "tests/catch.h"

namespace {

using namespace kvm;
using mesh::BlockShape;
using mesh::CheckConfig;
using mesh::Config;

Config Good() {
  Config config;
  config.node = "a";
  config.peers = {{"b", "127.0.0.1:7601"}, {"c", "[::1]:7602"}};
  return config;
}

kvmmesh::BlockShape GoodShape() {
  BlockShape shape;
  shape.block_bytes = 4096;
  return shape.ToMessage();
}

}  // namespace

TEST_CASE("Mesh configuration: addresses of the loopback need no further option", "[unit]") { KVM_REQUIRE_OK(CheckConfig(Good())); }

TEST_CASE("Mesh configuration: an address of another machine is refused unless unencrypted transfer is allowed", "[unit]") {
  Config config = Good();
  config.peers[0].address = "192.0.2.1:7601";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "unencrypted");
  config.allow_unencrypted = true;
  KVM_REQUIRE_OK(CheckConfig(config));
  config = Good();
  for (const char* everywhere : {"0.0.0.0:7600", "[::]:7600"}) {
    config.listen = everywhere;
    KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "unencrypted");
  }
}

TEST_CASE("Mesh configuration: with certificates, UCX needs a permission, and its address is one that is allowed", "[unit]") {
  Config config = Good();
  config.transfer = mesh::TransferChoice::kUcx;
  KVM_REQUIRE_OK(CheckConfig(config));
  config.ucx_listen = "192.0.2.1:7700";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--ucx-listen");
  config.tls = {"ca.pem", "a.pem", "a.key"};
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--ucx-unencrypted");
  config.ucx_unencrypted = true;
  KVM_REQUIRE_OK(CheckConfig(config));
  // Where there is a choice, it is made at the start.
  config.ucx_unencrypted = false;
  config.transfer = mesh::TransferChoice::kAuto;
  KVM_REQUIRE_OK(CheckConfig(config));
}

TEST_CASE("Mesh configuration: certificates allow addresses of other machines, and only all of their files do", "[unit]") {
  Config config = Good();
  config.listen = "0.0.0.0:7600";
  config.peers[0].address = "192.0.2.1:7601";
  config.tls = {"ca.pem", "a.pem", "a.key"};
  KVM_REQUIRE_OK(CheckConfig(config));
  config.allow_unencrypted = true;
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--allow-unencrypted");
  config.allow_unencrypted = false;
  for (std::string mesh::TlsFiles::*file : {&mesh::TlsFiles::authority, &mesh::TlsFiles::certificate, &mesh::TlsFiles::key}) {
    config.tls = {"ca.pem", "a.pem", "a.key"};
    (config.tls.*file).clear();
    KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "all of them or none");
  }
  config = Good();
  config.tls.revoked = "crl.pem";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--tls-crl");
}

TEST_CASE("Mesh identity: a node's name has one spelling, and no name can pass for another one's", "[unit]") {
  CHECK(mesh::MeshIdentity("uid:1000", "rack3-node7") == "kvmd://uid:1000/rack3-node7");
  CHECK(mesh::MeshIdentity("uid:1", "a/b") == "kvmd://uid:1/a%2Fb");
  CHECK(mesh::MeshIdentity("uid:1/a", "b") == "kvmd://uid:1%2Fa/b");
  CHECK(mesh::MeshIdentity("d", "a%2Fb") == "kvmd://d/a%252Fb");
  CHECK(mesh::MeshIdentity("d", "a:\xc3\xa9") == "kvmd://d/a%3A%C3%A9");
}

// Without kDiskName in IsNodeName a node may be called "disk": seen.
TEST_CASE("Mesh configuration: names that are missing, twice or not printable are refused, and so are host names", "[unit]") {
  Config config = Good();
  config.node = "";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--node");
  // What is shown of it would be taken for the disk cache.
  config.node = "disk";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--node");
  config = Good();
  config.peers[1].node = "disk";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--peers");
  config = Good();
  config.peers[1].node = "b";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "named twice");
  config = Good();
  config.peers[1].node = "a";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "named twice");
  for (const char* address : {"localhost:7600", "127.0.0.1", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:76x", ":7600", ""}) {
    config = Good();
    config.peers[0].address = address;
    INFO(address);
    KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "an IP address and a port");
  }
}

TEST_CASE("Mesh shape: a message is taken only if every field of it is in range", "[unit]") {
  const auto good = BlockShape::FromMessage(GoodShape(), 4096);
  KVM_REQUIRE_OK(good);
  CHECK(good->block_bytes == 4096);
  KVM_CHECK_ERROR(BlockShape::FromMessage(GoodShape(), 4095), Errc::kProtocol, "4096 bytes");
  kvmmesh::BlockShape bad = GoodShape();
  bad.set_block_bytes(0);
  KVM_CHECK_ERROR(BlockShape::FromMessage(bad, 4096), Errc::kProtocol, "0 bytes");
  bad = GoodShape();
  bad.set_fingerprint("short");
  KVM_CHECK_ERROR(BlockShape::FromMessage(bad, 4096), Errc::kProtocol, "32 bytes");
  bad = GoodShape();
  bad.set_tp_size(65536 + 1);  // 1 in 16 bits
  KVM_CHECK_ERROR(BlockShape::FromMessage(bad, 4096), Errc::kProtocol, "out of range");
  bad = GoodShape();
  bad.set_tp_rank(1);
  KVM_CHECK_ERROR(BlockShape::FromMessage(bad, 4096), Errc::kProtocol, "");
}

TEST_CASE("Mesh configuration: with etcd the address that peers are told must be one of a machine", "[unit]") {
  Config config = Good();
  config.etcd.endpoints = {"http://127.0.0.1:2379"};
  KVM_REQUIRE_OK(CheckConfig(config));
  config.tls = {"ca.pem", "a.pem", "a.key"};
  config.listen = "0.0.0.0:7600";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--advertise");
  config.etcd.advertise = "192.0.2.1:7600";
  KVM_REQUIRE_OK(CheckConfig(config));
  for (const char* wrong : {"0.0.0.0:7600", "192.0.2.1:0", "a:7600", "192.0.2.1"}) {
    config.etcd.advertise = wrong;
    KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--advertise");
  }
  // Without certificates another machine's peers could not be let in.
  config = Good();
  config.etcd.endpoints = {"http://127.0.0.1:2379"};
  config.etcd.advertise = "192.0.2.1:7600";
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--advertise");
  config.etcd.endpoints = {"127.0.0.1:2379"};
  KVM_CHECK_ERROR(CheckConfig(config), Errc::kInvalidArgument, "--etcd");
}
