#include "tests/fuzz/mutator.h"

#include <cstdlib>
#include <cstring>

namespace kvm::fuzz {
namespace {

// Values at which arithmetic goes wrong.
std::uint64_t Interesting(test::Random& random) {
  const std::uint64_t values[] = {0,
                                  1,
                                  2,
                                  7,
                                  8,
                                  63,
                                  64,
                                  255,
                                  256,
                                  4096,
                                  65535,
                                  65536,
                                  0x7fffffff,
                                  0x80000000,
                                  0xffffffff,
                                  ~std::uint64_t{0},
                                  std::uint64_t{1} << 63,
                                  (std::uint64_t{1} << 63) - 1,
                                  std::uint64_t{1} << 32,
                                  ~std::uint64_t{63}};
  return random.Pick(values) + (random.OneIn(3) ? random.Below(3) - 1 : 0);
}

void Change(std::string& input, const std::vector<std::string>& seeds, test::Random& random) {
  const std::size_t at = random.Below(input.size() + 1);
  switch (random.Below(8)) {
    case 0:  // one bit
      if (at < input.size()) input[at] = static_cast<char>(input[at] ^ (1 << random.Below(8)));
      return;
    case 1:  // one byte
      if (at < input.size()) input[at] = static_cast<char>(random.Next());
      return;
    case 2: {  // a number of 1, 2, 4 or 8 bytes
      const std::uint64_t value = Interesting(random);
      const std::size_t size = std::size_t{1} << random.Below(4);
      if (at + size <= input.size()) std::memcpy(input.data() + at, &value, size);
      return;
    }
    case 3: input.resize(at); return;
    case 4: input.erase(at, random.Between(1, 16)); return;
    case 5: input.insert(at, random.Between(1, 16), static_cast<char>(random.Next())); return;
    case 6: {  // a piece again
      const std::string piece = input.substr(at, random.Between(1, 64));
      input.insert(random.Below(input.size() + 1), piece);
      return;
    }
    default: {  // the tail of another seed
      const std::string& other = seeds[random.Below(seeds.size())];
      input.resize(at);
      input.append(other, random.Below(other.size() + 1), std::string::npos);
      return;
    }
  }
}

}  // namespace

std::string Mutate(const std::vector<std::string>& seeds, test::Random& random) {
  if (random.OneIn(50)) {
    std::string noise(random.Below(400), '\0');
    for (char& c : noise) c = static_cast<char>(random.Next());
    return noise;
  }
  std::string input = seeds[random.Below(seeds.size())];
  for (std::uint64_t changes = random.Below(9); changes > 0; --changes) Change(input, seeds, random);
  return input;
}

std::uint64_t Rounds(std::uint64_t usual) {
  const char* text = std::getenv("KVM_FUZZ_ROUNDS");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : usual;
}

}  // namespace kvm::fuzz
