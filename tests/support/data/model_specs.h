// Model specs that tests share.
#pragma once

#include "kvm/model_spec.h"

namespace kvm::test {

inline ModelSpec LlamaSpec() {
  ModelSpec spec;
  spec.model_id = "meta-llama/Llama-3.1-8B";
  spec.revision = "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b";
  spec.tokenizer_digest = "sha256:79e3e522";
  spec.rope = "theta=500000;scaling=llama3:8:1:4:8192";
  spec.kv_dtype = "bfloat16";
  spec.layout = "NHD";
  spec.num_layers = 32;
  spec.num_kv_heads = 8;
  spec.head_size = 128;
  spec.block_tokens = 16;
  return spec;
}

// Values that a careless canonical form would mix up.
inline ModelSpec AwkwardSpec() {
  ModelSpec spec = LlamaSpec();
  spec.model_id = "a=3:b\nrevision=1:x\n";
  spec.revision = std::string("\0\xff\n", 3);
  spec.rope = ":";
  spec.kv_scales = "=";
  spec.num_layers = 4294967295u;
  return spec;
}

}  // namespace kvm::test
