// kvm_bench's commands beside nodes: they come to their end, and print what they measure.
#include <string>

#include "tests/catch.h"
#include "tests/support/kvmd/kvctl_sandbox.h"
#include "tests/support/mesh/two_nodes.h"

namespace {

using namespace kvm;

}  // namespace

TEST_CASE("kvm_bench mesh-delays: joins of nothing and blocks that another node finds are timed", "[integration]") {
  const test::TwoNodes nodes;
  const test::Sandbox sandbox;
  const test::Sandbox::Output out =
      sandbox.RunBeside("kvm_bench", "mesh-delays --socket " + nodes.kvmd_b.socket() + " --source-socket " + nodes.kvmd_a.socket() +
                                         " --mesh-socket " + nodes.mesh_b.socket() + " --joins 5 --published 2 --held 640 --changes 640");
  INFO(out.err);
  CHECK(out.code == 0);
  CHECK(out.out.find("the peer is asked: p50 ") != std::string::npos);
  CHECK(out.out.find("640 blocks held, 0 changes/s: p50 ") != std::string::npos);
}

TEST_CASE("kvm_bench held: the processor time of a kvmd-mesh is counted while nothing changes, and while blocks do", "[integration]") {
  test::KvmdProcess kvmd;
  const test::MeshProcess mesh(kvmd, "a");
  const test::Sandbox sandbox;
  const test::Sandbox::Output out =
      sandbox.RunBeside("kvm_bench", "held --socket " + kvmd.socket() + " --mesh-socket " + mesh.socket() + " --pid " +
                                         std::to_string(mesh.pid()) + " --blocks 1024 --change 256 --seconds 1");
  INFO(out.err);
  CHECK(out.code == 0);
  CHECK(out.out.find("nothing changes: ") != std::string::npos);
  CHECK(out.out.find("256 blocks replaced each second: ") != std::string::npos);
}
