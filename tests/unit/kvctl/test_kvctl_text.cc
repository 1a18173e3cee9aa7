// What kvctl prints: units, alignment, and text from clients that must not reach a terminal as it
// is.
#include <sstream>

#include "client/kvctl/cli/samples.h"
#include "client/kvctl/cli/text.h"
#include "tests/catch.h"

using namespace kvm::ctl;

TEST_CASE("Text: numbers have units", "[unit]") {
  CHECK(HumanBytes(0) == "0 B");
  CHECK(HumanBytes(1023) == "1023 B");
  CHECK(HumanBytes(1536) == "1.5 KiB");
  CHECK(HumanBytes(std::uint64_t{1} << 30) == "1 GiB");
  CHECK(HumanBytes(~std::uint64_t{0}) == "16 EiB");
  CHECK(HumanCount(7) == "7");
  CHECK(HumanCount(1000) == "1,000");
  CHECK(HumanCount(1234567) == "1,234,567");
  CHECK(HumanNanoseconds(7.25) == "7.2 ns");
  CHECK(HumanNanoseconds(13500) == "13.5 µs");
  CHECK(HumanNanoseconds(2.5e9) == "2.50 s");
  CHECK(HumanPercent(1, 3) == "33.3 %");
  CHECK(HumanPercent(1, 0) == "-");
  CHECK(HumanSeconds(59) == "59 s");
  CHECK(HumanSeconds(3 * 3600 + 12 * 60 + 5) == "3 h 12 min");
}

TEST_CASE("Text: columns are aligned by what a terminal shows", "[unit]") {
  Table table({"name", ">time"});
  table.Add({"a", "13.5 µs"});
  table.Add({"longer", "1 s"});
  table.Add({"short row"});
  std::ostringstream out;
  table.Print(out);
  CHECK(out.str() ==
        "name          time\n"
        "a          13.5 µs\n"
        "longer         1 s\n"
        "short row\n");
}

TEST_CASE("Text: control characters of a client's name do not reach the terminal", "[unit]") {
  CHECK(Printable("worker\x1b[2J\n") == "worker?[2J?");
  CHECK(Printable("Größe") == "Größe");
}

TEST_CASE("Text: bytes that are not UTF-8 are replaced one by one, also where a limit cut a character", "[unit]") {
  CHECK(Printable("pool: \xff\xfe no") == "pool: ?? no");
  CHECK(Printable("cut \xe2\x80") == "cut ??");
  CHECK(Printable("\xc0\xaf") == "??");            // overlong
  CHECK(Printable("\xed\xa0\x80") == "???");       // a surrogate
  CHECK(Printable("\xf4\x90\x80\x80") == "????");  // beyond Unicode
  CHECK(Printable("12 \xc2\xb5s \xe2\x80\xa6 \xf0\x9f\x99\x82") == "12 \xc2\xb5s \xe2\x80\xa6 \xf0\x9f\x99\x82");
  CHECK(Printable("\xc2\x9b"
                  "2J") == "?2J");  // CSI as one code point
  CHECK(Printable("a\xe2\x80\xae"
                  "b") == "a?b");  // right-to-left override
}

TEST_CASE("Samples: percentiles are values that occurred, by nearest rank", "[unit]") {
  Samples samples;
  CHECK(samples.p50() == 0);
  for (int i = 100; i >= 1; --i) samples.Add(i);
  CHECK(samples.p50() == 50);
  CHECK(samples.p99() == 99);
  CHECK(samples.Percentile(1.0) == 100);
  CHECK(samples.Percentile(0.0) == 1);
  CHECK(samples.Mean() == 50.5);
  Samples one;
  one.Add(3);
  CHECK(one.p50() == 3);
  CHECK(one.p99() == 3);
}
