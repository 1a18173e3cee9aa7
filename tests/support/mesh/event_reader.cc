#include "tests/support/mesh/event_reader.h"

#include <algorithm>

#include "tests/catch.h"

namespace kvm::test {
namespace {

// MessagePack, the types that events have.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  std::uint64_t Unsigned() {
    const std::uint8_t mark = Byte();
    if (mark < 0x80) return mark;
    REQUIRE((mark >= 0xcc && mark <= 0xcf));
    return Big(1u << (mark - 0xcc));
  }
  bool TakeNil() {
    REQUIRE(at_ < bytes_.size());
    if (static_cast<std::uint8_t>(bytes_[at_]) != 0xc0) return false;
    ++at_;
    return true;
  }
  void Real() {
    REQUIRE(Byte() == 0xcb);
    Big(8);
  }
  std::string Text() {
    const std::uint8_t mark = Byte();
    std::uint64_t size = mark & 0x1f;
    if (mark == 0xd9)
      size = Big(1);
    else if (mark == 0xdb)
      size = Big(4);
    else
      REQUIRE((mark & 0xe0) == 0xa0);
    REQUIRE(size <= bytes_.size() - at_);
    at_ += size;
    return std::string(bytes_.substr(at_ - size, size));
  }
  std::uint64_t Array() { return Count(0x90, 0xdc); }
  std::uint64_t Map() { return Count(0x80, 0xde); }
  bool ended() const { return at_ == bytes_.size(); }

 private:
  std::uint8_t Byte() {
    REQUIRE(at_ < bytes_.size());
    return static_cast<std::uint8_t>(bytes_[at_++]);
  }
  std::uint64_t Big(std::uint64_t size) {
    std::uint64_t out = 0;
    for (std::uint64_t i = 0; i < size; ++i) out = out << 8 | Byte();
    return out;
  }
  std::uint64_t Count(unsigned small, unsigned large) {
    const unsigned mark = Byte();
    if (mark == large) return Big(2);
    if (mark == large + 1) return Big(4);
    REQUIRE((mark & 0xf0u) == small);
    return mark & 0x0fu;
  }

  std::string_view bytes_;
  std::size_t at_ = 0;
};

std::vector<std::uint64_t> Numbers(Reader& in) {
  std::vector<std::uint64_t> out(in.Array());
  for (std::uint64_t& each : out) each = in.Unsigned();
  return out;
}

KvEvent ReadEvent(Reader& in) {
  KvEvent out;
  for (std::uint64_t left = in.Map(); left != 0; --left) {
    const std::string name = in.Text();
    if (name == "type")
      out.type = in.Text();
    else if (name == "block_hashes")
      out.hashes = Numbers(in);
    else if (name == "token_ids")
      out.tokens = Numbers(in);
    else if (name == "block_size")
      out.block_size = in.Unsigned();
    else if (name == "medium")
      out.medium = in.Text();
    else if (name == "lora_id")
      REQUIRE(in.TakeNil());
    else if (name == "parent_block_hash") {
      if (!in.TakeNil()) out.parent = in.Unsigned();
    } else if (name == "lora_name") {
      if (!in.TakeNil()) out.adapter = in.Text();
    } else if (name == "extra_keys") {
      for (std::uint64_t blocks = in.Array(); blocks != 0; --blocks) {
        REQUIRE(in.Array() == 1);
        CHECK(in.Text() == out.adapter);
      }
    } else {
      FAIL("a field " << name);
    }
  }
  return out;
}

}  // namespace

std::vector<KvEvent> ReadEvents(std::string_view payload) {
  Reader in(payload);
  REQUIRE(in.Array() == 3);
  in.Real();
  std::vector<KvEvent> out;
  for (std::uint64_t left = in.Array(); left != 0; --left) out.push_back(ReadEvent(in));
  CHECK(in.Unsigned() == 0);
  CHECK(in.ended());
  return out;
}

bool EventReader::Knows(std::uint64_t hash, const std::string& child_medium) const {
  return blocks_.contains({"GPU", hash}) || (child_medium == "CPU" && blocks_.contains({"CPU", hash}));
}

void EventReader::Store(const KvEvent& event) {
  const std::uint64_t size = event.block_size;
  REQUIRE(event.tokens.size() == event.hashes.size() * size);
  std::optional<std::uint64_t> parent = event.parent;
  for (std::size_t i = 0; i < event.hashes.size(); ++i) {
    const std::uint64_t hash = event.hashes[i];
    if (parent && !Knows(*parent, event.medium)) refused_.push_back("stored without its parent: " + std::to_string(hash));
    const auto tokens = event.tokens.begin() + static_cast<std::ptrdiff_t>(i * size);
    const bool fresh =
        blocks_.try_emplace({event.medium, hash}, Block{parent, {tokens, tokens + static_cast<std::ptrdiff_t>(size)}, event.adapter})
            .second;
    if (!fresh) refused_.push_back("stored twice: " + std::to_string(hash));
    parent = hash;
  }
}

void EventReader::Remove(const KvEvent& event) {
  for (const std::uint64_t hash : event.hashes)
    if (blocks_.erase({event.medium, hash}) == 0) refused_.push_back("removed and unknown: " + std::to_string(hash));
}

void EventReader::Apply(std::string_view payload) {
  std::size_t blocks = 0;
  for (const KvEvent& event : ReadEvents(payload)) {
    blocks += event.hashes.size();
    if (event.type == "BlockStored")
      Store(event);
    else if (event.type == "BlockRemoved")
      Remove(event);
    else if (event.type == "AllBlocksCleared")
      blocks_.clear();
    else
      refused_.push_back("type " + event.type);
  }
  largest_batch_ = std::max(largest_batch_, blocks);
}

}  // namespace kvm::test
