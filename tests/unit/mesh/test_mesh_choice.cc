// Which peer a join asks, and which it does not ask because computing is faster.
#include "client/mesh/sources/peer_rate.h"
#include "client/mesh/sources/source_choice.h"
#include "tests/catch.h"

namespace {

using namespace kvm::mesh;
using namespace std::chrono_literals;

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

Candidate Measured(std::string node, std::size_t depth, std::uint64_t bytes_per_s) {
  Candidate out;
  out.node = std::move(node);
  out.depth = depth;
  out.bytes_per_s = bytes_per_s;
  return out;
}

// 100 keys of 1 MiB blocks, none of which are here.
ChoiceTerms Terms(double prefill_blocks_per_s = 0) {
  return {.local = 0, .keys = 100, .min_blocks = 1, .block_bytes = kMiB, .prefill_blocks_per_s = prefill_blocks_per_s};
}

}  // namespace

TEST_CASE("Mesh choice: without a prefill rate the peer that reaches deepest is asked, then the faster one", "[unit]") {
  const std::vector<Candidate> peers{Measured("a", 10, 900 * kMiB), Measured("b", 20, 1 * kMiB), Measured("c", 20, 2 * kMiB)};
  const Choice choice = ChooseSource(peers, Terms());
  CHECK(choice.chosen == 2u);
  CHECK(choice.depth == 20);
  CHECK(choice.reason.empty());
}

TEST_CASE("Mesh choice: a peer that has not been measured comes before a measured one of the same depth", "[unit]") {
  const std::vector<Candidate> peers{Measured("fast", 20, 4096 * kMiB), Measured("new", 20, PeerRate::kUnknown)};
  CHECK(ChooseSource(peers, Terms()).chosen == 1u);
  CHECK(ChooseSource(peers, Terms(1000)).chosen == 1u);
}

TEST_CASE("Mesh choice: nothing is fetched if computing is expected to be faster, and the reason has both times", "[unit]") {
  // 10 blocks: 1 s from the peer, 0.5 s by computing.
  const std::vector<Candidate> peers{Measured("slow", 10, 10 * kMiB)};
  const Choice choice = ChooseSource(peers, Terms(20));
  CHECK_FALSE(choice.chosen);
  CHECK(choice.reason == "slow: fetching 10 blocks would take 1000.0 ms, computing them 500.0 ms");
  // At half the prefill rate and less the peer wins.
  CHECK(ChooseSource(peers, Terms(9)).chosen == 0u);
  CHECK(ChooseSource(peers, Terms(0)).chosen == 0u);
}

TEST_CASE("Mesh choice: the round trip counts, so that few blocks are computed where many are fetched", "[unit]") {
  std::vector<Candidate> peers{Measured("far", 1, 1024 * kMiB)};
  peers[0].round_trip = 100ms;
  CHECK_FALSE(ChooseSource(peers, Terms(20)).chosen);
  peers[0].depth = 50;
  CHECK(ChooseSource(peers, Terms(20)).chosen == 0u);
}

TEST_CASE("Mesh choice: with a prefill rate the peer that saves most time is asked, and not the deepest one", "[unit]") {
  // a saves 1 s - 0.1 s; b saves 2 s - 1.9 s.
  const std::vector<Candidate> peers{Measured("a", 10, 100 * kMiB), Measured("b", 20, 20 * kMiB * 100 / 190)};
  CHECK(ChooseSource(peers, Terms(10)).chosen == 0u);
  CHECK(ChooseSource(peers, Terms()).chosen == 1u);
}

TEST_CASE("Mesh choice: of two that reach as far the one that needs no disk is asked, unless its disk was measured faster", "[unit]") {
  std::vector<Candidate> peers{Measured("disk", 20, 4096 * kMiB), Measured("memory", 20, 500 * kMiB)};
  peers[0].disk = 20;
  peers[0].disk_bytes_per_s = 300 * kMiB;
  CHECK(ChooseSource(peers, Terms()).chosen == 1u);
  CHECK(ChooseSource(peers, Terms(100)).chosen == 1u);
  peers[0].disk_bytes_per_s = 900 * kMiB;
  CHECK(ChooseSource(peers, Terms()).chosen == 0u);
  CHECK(ChooseSource(peers, Terms(100)).chosen == 0u);
  // One that has not been measured is expected to be no faster than memory mostly is.
  peers[0].disk_bytes_per_s = PeerRate::kUnknown;
  peers[1].bytes_per_s = 2048 * kMiB;
  CHECK(ChooseSource(peers, Terms()).chosen == 1u);
  CHECK(ChooseSource(std::vector{peers[0]}, Terms(1e9)).chosen == 0u);
}

TEST_CASE("Mesh choice: the rate of a peer's disk decides about blocks that are there, and the verdict says so", "[unit]") {
  std::vector<Candidate> peers{Measured("a", 10, 1024 * kMiB)};
  peers[0].disk = 4;
  peers[0].disk_bytes_per_s = 10 * kMiB;
  const Choice choice = ChooseSource(peers, Terms(20));
  CHECK_FALSE(choice.chosen);
  CHECK(choice.reason == "a: fetching 10 blocks (4 of them from its disk) would take 1000.0 ms, computing them 500.0 ms");
  // None of those that are lacking.
  ChoiceTerms terms = Terms(20);
  terms.local = 10;
  peers[0].depth = 20;
  peers[0].disk = 0;
  CHECK(ChooseSource(peers, terms).chosen == 0u);
}

TEST_CASE("Mesh choice: requests under way share a peer's rate", "[unit]") {
  std::vector<Candidate> peers{Measured("a", 10, 100 * kMiB), Measured("b", 10, 60 * kMiB)};
  CHECK(ChooseSource(peers, Terms()).chosen == 0u);
  peers[0].in_flight = 1;
  CHECK(ChooseSource(peers, Terms()).chosen == 1u);
}

TEST_CASE("Mesh choice: a hint comes first, unless the peer has lied or was asked already", "[unit]") {
  std::vector<Candidate> peers{Measured("a", 90, 100 * kMiB), Measured("hinted", 0, 1 * kMiB)};
  peers[1].hinted = true;
  peers[1].fresh = false;  // its summary is not known
  Choice choice = ChooseSource(peers, Terms());
  CHECK(choice.chosen == 1u);
  CHECK(choice.depth == 100);
  peers[1].asked = true;
  CHECK(ChooseSource(peers, Terms()).chosen == 0u);
  peers[1].asked = false;
  peers[1].shunned = true;
  CHECK(ChooseSource(peers, Terms()).chosen == 0u);
}

TEST_CASE("Mesh choice: a hint does not make a slow peer worth asking", "[unit]") {
  std::vector<Candidate> peers{Measured("hinted", 0, 1 * kMiB)};
  peers[0].hinted = true;
  CHECK_FALSE(ChooseSource(peers, Terms(20)).chosen);
}

TEST_CASE("Mesh choice: fewer blocks than wanted, silence and lies are reasons of their own", "[unit]") {
  std::vector<Candidate> peers{Measured("few", 3, kMiB), Measured("silent", 50, kMiB), Measured("liar", 60, kMiB)};
  peers[1].fresh = false;
  peers[2].shunned = true;
  ChoiceTerms terms = Terms();
  terms.min_blocks = 5;
  const Choice choice = ChooseSource(peers, terms);
  CHECK_FALSE(choice.chosen);
  REQUIRE(choice.verdicts.size() == 3);
  CHECK(choice.verdicts[0].find("fewer than the 5 wanted") != std::string::npos);
  CHECK(choice.verdicts[1].find("does not answer") != std::string::npos);
  CHECK(choice.verdicts[2].find("not asked for a while") != std::string::npos);
  CHECK(ChooseSource({}, Terms()).reason == "no peer seems to have more");
}

TEST_CASE("Mesh rate: what was measured loses its weight with time, so that no peer is left out for good", "[unit]") {
  PeerRate rate;
  const PeerRate::Time now{};
  CHECK(rate.Expected(now) == PeerRate::kUnknown);
  CHECK(rate.measured() == 0);
  rate.Measured(100 * kMiB, 1s, now);
  CHECK(rate.measured() == 100 * kMiB);
  CHECK(rate.Expected(now) == 100 * kMiB);
  CHECK(rate.Expected(now + 1min) == 200 * kMiB);
  CHECK(rate.Expected(now + 24h) == PeerRate::kUnknown);
  rate.Measured(0, 1s, now);  // nothing came: no measurement
  CHECK(rate.measured() == 100 * kMiB);
}

TEST_CASE("Mesh rate: a peer whose transfers fail is expected to be slow, measured or not", "[unit]") {
  const PeerRate::Time now{};
  PeerRate never;
  never.Failed(now);
  const std::uint64_t once = never.Expected(now);
  CHECK(once < PeerRate::kUnknown);
  never.Failed(now);
  CHECK(never.Expected(now) == once / 2);
  CHECK(never.measured() == 0);
  PeerRate measured;
  measured.Measured(100 * kMiB, 1s, now);
  measured.Failed(now);
  CHECK(measured.Expected(now) == 50 * kMiB);
}
