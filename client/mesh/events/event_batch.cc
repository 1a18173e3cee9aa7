#include "client/mesh/events/event_batch.h"

namespace kvm::mesh {
namespace {

std::string_view MediumName(Media medium) { return medium == kGpuMedium ? "GPU" : "CPU"; }

void WriteHashes(MsgpackWriter& out, std::span<const std::uint64_t> hashes) {
  out.Array(static_cast<std::uint32_t>(hashes.size()));
  for (const std::uint64_t hash : hashes) out.Unsigned(hash);
}

void WriteName(MsgpackWriter& out, std::string_view name) {
  if (name.empty()) {
    out.Nil();
  } else {
    out.Text(name);
  }
}

}  // namespace

void EventBatch::AddStored(const StoredRun& run) {
  const bool adapter = !run.adapter.empty();
  body_.Map(adapter ? 9 : 8);
  body_.Text("type");
  body_.Text("BlockStored");
  body_.Text("block_hashes");
  WriteHashes(body_, run.hashes);
  body_.Text("parent_block_hash");
  if (run.parent) {
    body_.Unsigned(*run.parent);
  } else {
    body_.Nil();
  }
  body_.Text("token_ids");
  body_.Array(static_cast<std::uint32_t>(run.tokens.size()));
  for (const std::uint32_t token : run.tokens) body_.Unsigned(token);
  body_.Text("block_size");
  body_.Unsigned(run.block_tokens);
  body_.Text("lora_id");
  body_.Nil();
  body_.Text("medium");
  body_.Text(MediumName(run.medium));
  body_.Text("lora_name");
  WriteName(body_, run.adapter);
  if (adapter) {
    body_.Text("extra_keys");
    body_.Array(static_cast<std::uint32_t>(run.hashes.size()));
    for (std::size_t i = 0; i < run.hashes.size(); ++i) {
      body_.Array(1);
      body_.Text(run.adapter);
    }
  }
  blocks_ += run.hashes.size();
  ++events_;
}

void EventBatch::AddRemoved(Media medium, std::span<const std::uint64_t> hashes) {
  body_.Map(3);
  body_.Text("type");
  body_.Text("BlockRemoved");
  body_.Text("block_hashes");
  WriteHashes(body_, hashes);
  body_.Text("medium");
  body_.Text(MediumName(medium));
  blocks_ += hashes.size();
  ++events_;
}

void EventBatch::AddCleared() {
  body_.Map(1);
  body_.Text("type");
  body_.Text("AllBlocksCleared");
  ++events_;
}

std::string EventBatch::Finish(double unix_s) {
  MsgpackWriter out;
  out.Reserve(body_.bytes().size() + 32);
  out.Array(3);
  out.Real(unix_s);
  out.Array(events_);
  out.Raw(body_.bytes());
  out.Unsigned(0);
  body_.Clear();
  events_ = 0;
  blocks_ = 0;
  return out.Take();
}

}  // namespace kvm::mesh
