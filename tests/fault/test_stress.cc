// Writers that recycle blocks at full speed against importers in other processes: no import that is
// called valid has wrong bytes. The same without validation does have some, so the test is able to
// fail.
#include <algorithm>
#include <sstream>
#include <vector>

#include "tests/catch.h"
#include "tests/support/data/random.h"
#include "tests/support/kvmd/kvmd_process.h"
#include "tests/support/kvmd/raw_importer.h"
#include "tests/support/worker/busy_worker.h"
#include "tests/support/worker/worker.h"

namespace {

using namespace kvm;
using test::ChildProcess;
using test::KvmdProcess;

const std::vector<std::string> kRecyclers = {"recycler-0", "recycler-1"};

std::vector<ChildProcess> StartRecyclers(const KvmdProcess& kvmd) {
  std::vector<ChildProcess> out;
  for (const std::string& name : kRecyclers) out.push_back(test::StartRecycler(kvmd.socket(), name));
  return out;
}

void FinishAll(std::vector<ChildProcess>& processes) {
  for (ChildProcess& process : processes) {
    const std::optional<test::ProcessEnd> end = test::Finish(process);
    REQUIRE(end.has_value());
    CHECK(end->clean());
  }
}

// Imports one key at a time by `import` until `enough` says so, at most 20 seconds.
template <class Import, class Enough>
test::RawOutcome ImportUntil(Import import, Enough enough) {
  std::vector<BlockKey> keys;
  for (const std::string& name : kRecyclers) {
    const std::vector<BlockKey> more = test::RecyclerKeys(name);
    keys.insert(keys.end(), more.begin(), more.end());
  }
  test::Random random(3);
  test::RawOutcome sum;
  const Deadline deadline = After(std::chrono::seconds(20));
  while (!enough(sum) && std::chrono::steady_clock::now() < deadline) {
    const test::RawOutcome outcome = import(std::span(&random.Pick(keys), 1));
    sum.imported += outcome.imported;
    sum.stale += outcome.stale;
    sum.wrong += outcome.wrong;
  }
  return sum;
}

}  // namespace

TEST_CASE("Stress: importers of blocks that are recycled at full speed never get wrong bytes", "[fault]") {
  KvmdProcess kvmd;
  std::vector<ChildProcess> recyclers = StartRecyclers(kvmd);
  std::vector<ChildProcess> importers;
  for (int i = 0; i < 2; ++i)
    importers.push_back(test::StartStressImporter(kvmd.socket(), "importer-" + std::to_string(i), kRecyclers, 5000));
  std::size_t valid = 0, stale = 0, wrong = 0;
  for (ChildProcess& importer : importers) {
    const std::optional<std::string> line = importer.ReadLine(std::chrono::seconds(50));
    REQUIRE(line.has_value());
    std::size_t a = 0, b = 0, c = 0;
    REQUIRE(static_cast<bool>(std::istringstream(*line) >> a >> b >> c));
    valid += a;
    stale += b;
    wrong += c;
  }
  FinishAll(recyclers);
  FinishAll(importers);
  CAPTURE(valid, stale, wrong);
  CHECK(wrong == 0);
  CHECK(valid > 0);
  CHECK(stale > 0);
}

TEST_CASE("Stress: an importer without libkvclient that validates never gets wrong bytes", "[fault]") {
  KvmdProcess kvmd;
  std::vector<ChildProcess> recyclers = StartRecyclers(kvmd);
  const auto importer = test::RawImporter::Start(kvmd.socket(), test::SmallSpec(), test::kRecyclerBlockBytes);
  KVM_REQUIRE_OK(importer);
  REQUIRE((*importer)->regions() == kRecyclers.size());
  const test::RawOutcome outcome = ImportUntil([&](std::span<const BlockKey> keys) { return (*importer)->Import(keys); },
                                               [](const test::RawOutcome& sum) { return sum.imported >= 1000 && sum.stale >= 1000; });
  FinishAll(recyclers);
  CAPTURE(outcome.imported, outcome.stale, outcome.wrong);
  CHECK(outcome.imported > 0);
  CHECK(outcome.stale > 0);
  CHECK(outcome.wrong == 0);
}

TEST_CASE("Stress: the same importer gets wrong bytes if a block is rewritten in the middle of an unchecked copy", "[fault]") {
  KvmdProcess kvmd;
  std::vector<ChildProcess> recyclers = StartRecyclers(kvmd);
  const auto importer = test::RawImporter::Start(kvmd.socket(), test::SmallSpec(), test::kRecyclerBlockBytes);
  KVM_REQUIRE_OK(importer);
  const test::RawOutcome outcome = ImportUntil([&](std::span<const BlockKey> keys) { return (*importer)->ImportUnchecked(keys); },
                                               [](const test::RawOutcome& sum) { return sum.wrong >= 10; });
  FinishAll(recyclers);
  CAPTURE(outcome.imported, outcome.wrong);
  CHECK(outcome.wrong >= 10);
}
