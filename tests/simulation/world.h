// What all parts of a simulation share: machine, kvmd, random numbers, what was counted, the last
// steps, and what is known of each generation table beside its memory.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "proto/base/inode.h"
#include "proto/shm/generation_table.h"
#include "tests/simulation/kvmd.h"
#include "tests/simulation/machine.h"
#include "tests/support/data/random.h"

namespace kvm::simulation {

// A defence that the simulation leaves out on its own side, to show that it would be noticed.
enum class Defect {
  kNone,
  kOwnerDoesNotWithdraw,     // overwrites a block that readers may read
  kImporterDoesNotValidate,  // takes a copy without the second look at the generation
  kStoreReportedTooEarly,    // a copy in the host cache is reported before it is complete
  kEndNotWritten,            // an owner that ends its region leaves the generations as they are
  kWrongSum,                 // a checker expects one entry more than there is
  kDescriptorLeft,           // a client keeps a descriptor beyond its end
};

// A property does not hold.
struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Counted {
  void Add(const Counted& more);
  std::string Text() const;

  std::uint64_t steps = 0, checks = 0, published = 0, copies = 0, validated = 0, caught = 0, validated_while_down = 0, validated_cached = 0,
                stores = 0, evicted = 0, leases = 0, adoptions = 0, unregistered = 0, deaths = 0, restarts = 0, refusals = 0, lies = 0,
                lacks = 0;
};

// What a generation table must hold: only its owner writes it.
struct Table {
  std::vector<Generation> generations;
  bool ended = false;  // its owner has ended all blocks, and no next owner has taken them up
};

struct Step {
  std::uint64_t number = 0;
  const char* what = "";
  std::uint64_t a = 0, b = 0, c = 0;
};

struct World {
  World(std::uint64_t its_seed, const daemon::Config& config, Defect its_defect)
      : seed(its_seed), defect(its_defect), machine(Mix(its_seed)), random(its_seed), kvmd(machine, config) {}

  void Note(const char* what, std::uint64_t a = 0, std::uint64_t b = 0, std::uint64_t c = 0) {
    last[noted++ % last.size()] = {counted.steps, what, a, b, c};
  }
  [[noreturn]] void Fail(const std::string& what) const { throw Violation(what + "\n" + LastSteps()); }
  std::string LastSteps() const {
    std::string out = "seed " + std::to_string(seed) + ", step " + std::to_string(counted.steps) + "; the last steps:\n";
    for (std::uint64_t i = noted > last.size() ? noted - last.size() : 0; i < noted; ++i) {
      const Step& step = last[i % last.size()];
      out += "  " + std::to_string(step.number) + " " + step.what + " " + std::to_string(step.a) + " " + std::to_string(step.b) + " " +
             std::to_string(step.c) + "\n";
    }
    return out;
  }

  const std::uint64_t seed;
  const Defect defect;
  Machine machine;
  test::Random random;
  Kvmd kvmd;
  Counted counted;
  std::map<FileId, std::shared_ptr<Table>> tables;
  std::vector<UniqueFd> left;              // Defect::kDescriptorLeft
  std::uint32_t next_process = 4'000'000;  // above all that the kernel assigns
  std::array<Step, 48> last;
  std::uint64_t noted = 0;
};

}  // namespace kvm::simulation
