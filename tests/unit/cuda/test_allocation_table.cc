// Exportable memory as far as it needs no GPU: the table of allocations, and what a build or
// machine without CUDA says.
#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "cuda/memory/allocation_table.h"
#include "kvm/exportable_memory.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

struct Memory {
  explicit Memory(std::atomic<int>& alive_) : alive(alive_) { ++alive; }
  ~Memory() { --alive; }
  std::atomic<int>& alive;
};
using Table = AllocationTable<Memory>;

void* At(std::uintptr_t address) { return reinterpret_cast<void*>(address); }

TEST_CASE("Allocation table: a range is found in the allocation that it begins in", "[unit]") {
  std::atomic<int> alive{0};
  Table table;
  CHECK_FALSE(table.Find({At(0x1000), 1})->has_value());
  table.Add(At(0x1000), 0x1000, std::make_shared<Memory>(alive));
  table.Add(At(0x2000), 0x800, std::make_shared<Memory>(alive));  // right behind it
  CHECK(table.size() == 2);
  CHECK(table.bytes() == 0x1800);
  struct Case {
    std::uintptr_t address;
    std::uint64_t bytes;
    std::uint64_t offset;
  };
  for (const Case& one :
       {Case{0x1000, 1, 0}, Case{0x1000, 0x1000, 0}, Case{0x1fff, 1, 0xfff}, Case{0x2000, 0x800, 0}, Case{0x2400, 0x400, 0x400}}) {
    INFO(one.address);
    const auto place = table.Find({At(one.address), one.bytes});
    KVM_REQUIRE_OK(place);
    REQUIRE(place->has_value());
    CHECK((*place)->offset == one.offset);
    CHECK((*place)->owner == (one.address < 0x2000 ? table.Find({At(0x1000), 1}) : table.Find({At(0x2000), 1})).value()->owner);
  }
  for (const std::uintptr_t outside : {0xfffu, 0x2800u, 0x9000u}) CHECK_FALSE(table.Find({At(outside), 1})->has_value());
}

TEST_CASE("Allocation table: a range that ends behind its allocation is refused", "[unit]") {
  std::atomic<int> alive{0};
  Table table;
  table.Add(At(0x1000), 0x1000, std::make_shared<Memory>(alive));
  table.Add(At(0x2000), 0x1000, std::make_shared<Memory>(alive));
  for (const DeviceRange& range : {DeviceRange{At(0x1000), 0x1001}, DeviceRange{At(0x1800), 0x1000}, DeviceRange{At(0x1800), UINT64_MAX},
                                   DeviceRange{At(0x1800), 0}}) {
    KVM_CHECK_ERROR(table.Find(range), Errc::kInvalidArgument, "leave their allocation of 4096");
  }
}

TEST_CASE("Allocation table: memory that was freed ends with its last user", "[unit]") {
  std::atomic<int> alive{0};
  Table table;
  table.Add(At(0x1000), 0x1000, std::make_shared<Memory>(alive));
  auto place = table.Find({At(0x1800), 16});
  KVM_REQUIRE_OK(place);
  CHECK(table.Take(At(0x1800)) == nullptr);  // not a beginning
  CHECK(table.Take(At(0x1000)) != nullptr);
  CHECK(table.Take(At(0x1000)) == nullptr);
  CHECK(table.size() == 0);
  CHECK_FALSE(table.Find({At(0x1800), 16})->has_value());
  CHECK(alive == 1);
  place = std::optional<Table::Place>();
  CHECK(alive == 0);
}

TEST_CASE("Allocation table: threads add, find and take at once", "[unit]") {
  std::atomic<int> alive{0}, wrong{0};
  Table table;
  std::vector<std::thread> threads;
  for (std::uintptr_t t = 1; t <= 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uintptr_t round = 0; round < 2000; ++round) {
        const std::uintptr_t base = (t << 32) + (round % 7) * 0x1000;
        const auto memory = std::make_shared<Memory>(alive);
        table.Add(At(base), 0x1000, memory);
        const auto place = table.Find({At(base + 0x10), 0x10});
        if (!place || !*place || (*place)->owner != memory || (*place)->offset != 0x10) ++wrong;
        if (table.Take(At(base)) != memory) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(alive == 0);
  CHECK(table.size() == 0);
}

TEST_CASE("Exportable memory: a GPU that does not exist is an error, and no memory stays allocated", "[unit]") {
  const Result<void*> memory = AllocateExportable(DeviceUuid{9, 9, 9}, 1 << 21);
  REQUIRE_FALSE(memory);
  CHECK((memory.error().code == Errc::kUnsupported || memory.error().code == Errc::kNotFound));
  for (void* never : {static_cast<void*>(nullptr), At(0x1000)}) CHECK_FALSE(FreeExportable(never));
  CHECK(ExportableInUse().allocations == 0);
  CHECK(ExportableInUse().bytes == 0);
}

}  // namespace
