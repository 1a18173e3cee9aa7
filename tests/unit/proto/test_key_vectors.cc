// Fingerprints and block keys against published vectors, which an independent implementation made.
#include <cstdint>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "kvm/block_key.h"
#include "kvm/model_spec.h"
#include "kvm/shard_keys.h"
#include "tests/catch.h"

namespace {

using namespace kvm;

std::string FromHex(const std::string& hex) {
  if (hex == "-") return {};
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

std::string ToHex(const std::string& bytes) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (const char c : bytes) {
    out.push_back(kDigits[static_cast<unsigned char>(c) >> 4]);
    out.push_back(kDigits[static_cast<unsigned char>(c) & 15]);
  }
  return out;
}

BlockKey KeyFromHex(const std::string& hex) {
  const Result<BlockKey> key = BlockKey::FromHex(hex);
  KVM_REQUIRE_OK(key);
  return *key;
}

// Runs the statements of the vector file in order; its head says what they mean.
class VectorRunner {
 public:
  void Run(const std::string& line) {
    std::istringstream in(line);
    std::string word, a, b;
    in >> word;
    if (word == "shard" || word == "shard_extra" || word == "shard_root" || word == "name" || word == "shard_key") {
      RunOfShard(word, in);
    } else if (word == "model") {
      in >> model_name_;
      spec_ = ModelSpec{};
    } else if (word == "set") {
      in >> a >> b;
      KVM_REQUIRE_OK(SetField(spec_, a, FromHex(b)));
    } else if (word == "canonical") {
      in >> a;
      CHECK(ToHex(spec_.Canonical()) == a);
    } else if (word == "fingerprint") {
      in >> a;
      CHECK(spec_.ComputeFingerprint().ToHex() == a);
      KVM_REQUIRE_OK(spec_.Validate());
      fingerprints_.emplace_back(model_name_, spec_.ComputeFingerprint());
      ++fingerprints;
    } else if (word == "chain") {
      in >> a >> shard_.tp_rank >> shard_.tp_size >> shard_.pp_rank >> shard_.pp_size >> shard_.kv_group;
      chain_model_ = a;
      request_extras_.clear();
    } else if (word == "request_extra" || word == "block_extra") {
      std::uint32_t kind = 0;
      in >> kind >> a;
      (word == "request_extra" ? request_extras_ : block_extras_).push_back({static_cast<ExtraKey::Kind>(kind), FromHex(a)});
    } else if (word == "root") {
      in >> a;
      chain_.emplace(FingerprintOf(chain_model_), shard_, request_extras_);
      CHECK(chain_->parent().ToHex() == a);
      ++roots;
    } else if (word == "tokens") {
      tokens_.clear();
      block_extras_.clear();
      for (std::uint32_t token = 0; in >> token;) tokens_.push_back(token);
    } else if (word == "key") {
      in >> a;
      REQUIRE(chain_.has_value());
      CHECK(chain_->Next(tokens_, block_extras_).ToHex() == a);
      ++keys;
    } else {
      FAIL("unknown statement: " << line);
    }
  }

  int fingerprints = 0, roots = 0, keys = 0, shard_roots = 0, shard_keys = 0;

 private:
  void RunOfShard(const std::string& word, std::istringstream& in) {
    std::string text;
    if (word == "shard") {
      in >> chain_model_ >> shard_.tp_rank >> shard_.tp_size >> shard_.pp_rank >> shard_.pp_size >> shard_.kv_group;
      request_extras_.clear();
    } else if (word == "shard_extra") {
      std::uint32_t kind = 0;
      in >> kind >> text;
      request_extras_.push_back({static_cast<ExtraKey::Kind>(kind), FromHex(text)});
    } else if (word == "shard_root") {
      in >> text;
      Result<ShardKeys> made = ShardKeys::Make(FingerprintOf(chain_model_), shard_, request_extras_);
      KVM_REQUIRE_OK(made);
      of_shard_.emplace(std::move(*made));
      CHECK(of_shard_->root().ToHex() == text);
      ++shard_roots;
    } else if (word == "name") {
      in >> text;
      names_.assign(1, KeyFromHex(text));
    } else {
      in >> text;
      REQUIRE(of_shard_.has_value());
      std::vector<BlockKey> derived;
      KVM_REQUIRE_OK(of_shard_->Derive(names_, derived));
      REQUIRE(derived.size() == 1);
      CHECK(derived[0].ToHex() == text);
      ++shard_keys;
    }
  }

  Fingerprint FingerprintOf(const std::string& name) const {
    for (const auto& [known, fingerprint] : fingerprints_) {
      if (known == name) return fingerprint;
    }
    FAIL("chain of an unknown model: " << name);
    return {};
  }

  std::string model_name_, chain_model_;
  ModelSpec spec_;
  std::vector<std::pair<std::string, Fingerprint>> fingerprints_;
  Shard shard_;
  std::vector<ExtraKey> request_extras_, block_extras_;
  std::vector<std::uint32_t> tokens_;
  std::optional<KeyChain> chain_;
  std::optional<ShardKeys> of_shard_;
  std::vector<BlockKey> names_;
};

}  // namespace

TEST_CASE("Keys: fingerprints, roots and block keys are those of the published vectors", "[unit]") {
  std::ifstream file(KVM_TEST_DATA_DIR "/unit/proto/key_vectors.txt");
  REQUIRE(file.is_open());
  VectorRunner runner;
  int number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.empty() || line.front() == '#') continue;
    INFO("key_vectors.txt:" << number << ": " << line);
    runner.Run(line);
  }
  CHECK(runner.fingerprints >= 3);
  CHECK(runner.roots >= 12);
  CHECK(runner.keys >= 20);
  CHECK(runner.shard_roots >= 5);
  CHECK(runner.shard_keys >= 10);
}
