#!/usr/bin/env python3
"""Writes tests/unit/proto/key_vectors.txt: published vectors of model fingerprints and block keys.

An implementation of the derivation that shares no code with proto/model/block_key.cc,
proto/model/shard_keys.cc and proto/model/model_spec.cc: only hashlib and struct. Format of the file: see its head.

    scripts/make_key_vectors.py > tests/unit/proto/key_vectors.txt
    scripts/make_key_vectors.py --check tests/unit/proto/key_vectors.txt
"""

import argparse
import hashlib
import struct
import sys

FIELDS = [
    "model_id",
    "revision",
    "weights_digest",
    "tokenizer_digest",
    "rope",
    "kv_dtype",
    "kv_scales",
    "layout",
    "quantization",
    "num_layers",
    "num_kv_heads",
    "head_size",
    "block_tokens",
    "sliding_window",
    "tp_size",
    "pp_size",
]
NUMBERS = {"num_layers", "num_kv_heads", "head_size", "block_tokens", "sliding_window", "tp_size", "pp_size"}
DEFAULTS = {"tp_size": "1", "pp_size": "1"}

LORA, CACHE_SALT, MULTIMODAL, PROMPT_EMBEDS, OTHER = 1, 2, 3, 4, 5

LLAMA = {
    "model_id": "meta-llama/Llama-3.1-8B-Instruct",
    "revision": "0e9e39f249a16976918f6564b8830bc894c89659",
    "tokenizer_digest": "sha256:79e3e522635f3171300913bb421464a87de6222182a0570b9b2ccba2a964b2b4",
    "rope": "theta=500000;scaling=llama3:8:1:4:8192",
    "kv_dtype": "bfloat16",
    "layout": "NHD",
    "num_layers": "32",
    "num_kv_heads": "8",
    "head_size": "128",
    "block_tokens": "16",
}
MLA = {
    "model_id": "deepseek-ai/DeepSeek-V3",
    "weights_digest": "blake3:abc",
    "rope": "theta=10000;scaling=yarn:40",
    "kv_dtype": "fp8_e4m3",
    "kv_scales": "sha256:5ca1e5",
    "layout": "MLA",
    "quantization": "fp8",
    "num_layers": "61",
    "num_kv_heads": "1",
    "head_size": "576",
    "block_tokens": "64",
    "tp_size": "8",
}
# Values that a careless canonical form would mix up: separators, line ends, bytes beyond ASCII.
AWKWARD = {
    "model_id": "a=3:b\nrevision=1:x\n",
    "revision": "größe",
    "rope": ":",
    "kv_dtype": "f",
    "layout": "HND",
    "num_layers": "1",
    "num_kv_heads": "4294967295",
    "head_size": "1",
    "block_tokens": "16",
    "sliding_window": "4096",
}


def canonical(spec):
    out = b"kvm.model.1\n"
    for name in FIELDS:
        value = spec.get(name, DEFAULTS.get(name, "0" if name in NUMBERS else "")).encode()
        out += name.encode() + b"=" + str(len(value)).encode() + b":" + value + b"\n"
    return out


def pack_extras(extras):
    return b"".join(struct.pack("<IQ", kind, len(value)) + value for kind, value in extras)


def root_key(fingerprint, shard, extras):
    return hashlib.sha256(b"kvm.root.1" + fingerprint + struct.pack("<5H", *shard) + pack_extras(extras)).digest()[:16]


def block_key(parent, tokens, extras):
    head = b"kvm1" + struct.pack("<I", len(tokens)) + parent
    return hashlib.sha256(head + struct.pack(f"<{len(tokens)}I", *tokens) + pack_extras(extras)).digest()[:16]


def aes_sbox():
    """From its definition: the inverse in GF(2^8), then an affine map."""
    box, p, q = [0] * 256, 1, 1
    while True:
        p ^= (p << 1) ^ (0x11B if p & 0x80 else 0)
        p &= 0xFF
        q ^= q << 1
        q ^= q << 2
        q ^= q << 4
        q &= 0xFF
        if q & 0x80:
            q ^= 0x09
        rotated = [((q << n) | (q >> (8 - n))) & 0xFF for n in range(5)]
        box[p] = rotated[0] ^ rotated[1] ^ rotated[2] ^ rotated[3] ^ rotated[4] ^ 0x63
        if p == 1:
            box[0] = 0x63
            return box


SBOX = aes_sbox()


def double(byte):
    return ((byte << 1) ^ (0x1B if byte & 0x80 else 0)) & 0xFF


def aes_round_keys(key):
    words, factor = [list(key[i : i + 4]) for i in range(0, 16, 4)], 1
    for i in range(4, 44):
        word = words[i - 1]
        if i % 4 == 0:
            word = [SBOX[byte] for byte in word[1:] + word[:1]]
            word[0] ^= factor
            factor = double(factor)
        words.append([a ^ b for a, b in zip(words[i - 4], word, strict=True)])
    return [[byte for word in words[i : i + 4] for byte in word] for i in range(0, 44, 4)]


def aes_encrypt(key, block):
    """AES-128 of one block (FIPS 197)."""
    rounds = aes_round_keys(key)
    state = [a ^ b for a, b in zip(block, rounds[0], strict=True)]
    for number in range(1, 11):
        state = [SBOX[byte] for byte in state]
        state = [state[(i + 4 * (i % 4)) % 16] for i in range(16)]
        if number < 10:
            mixed = []
            for column in (state[i : i + 4] for i in range(0, 16, 4)):
                for i in range(4):
                    a, b, c, d = (column[(i + n) % 4] for n in range(4))
                    mixed.append(double(a) ^ double(b) ^ b ^ c ^ d)
            state = mixed
        state = [a ^ b for a, b in zip(state, rounds[number], strict=True)]
    return bytes(state)


def shard_root(fingerprint, shard, extras):
    return hashlib.sha256(b"kvm.shard.1" + fingerprint + struct.pack("<5H", *shard) + pack_extras(extras)).digest()[:16]


def shard_key(root, name):
    return bytes(a ^ b for a, b in zip(aes_encrypt(root, name), name, strict=True))


def tokens_of(seed, count):
    """Token ids below 2^32 from a linear congruential generator, so that the file needs no other source."""
    out, state = [], seed
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(state >> 32 if state >> 63 else (state >> 32) % 128256)
    return out


# (model, shard, request extras, [(tokens, block extras)])
CHAINS = [
    ("llama", (0, 1, 0, 1, 0), [], [(tokens_of(i, 16), []) for i in range(4)]),
    ("llama", (1, 2, 0, 1, 0), [], [(tokens_of(0, 16), [])]),
    ("llama", (3, 4, 1, 2, 1), [], [(tokens_of(0, 16), [])]),
    ("llama", (0, 1, 0, 1, 65535), [], [(tokens_of(0, 16), [])]),
    ("llama", (0, 1, 0, 1, 0), [(LORA, b"sql-adapter@v3")], [(tokens_of(0, 16), [])]),
    ("llama", (0, 1, 0, 1, 0), [(CACHE_SALT, b"tenant-7")], [(tokens_of(0, 16), [])]),
    ("llama", (0, 1, 0, 1, 0), [(LORA, b"sql-adapter@v3"), (CACHE_SALT, b"tenant-7")], [(tokens_of(0, 16), [])]),
    ("llama", (0, 1, 0, 1, 0), [(OTHER, b"")], [(tokens_of(0, 16), [])]),
    (
        "llama",
        (0, 1, 0, 1, 0),
        [],
        [
            (tokens_of(9, 16), [(MULTIMODAL, bytes(range(32)))]),
            (tokens_of(10, 16), [(MULTIMODAL, bytes(range(32))), (PROMPT_EMBEDS, b"\x00\xff")]),
            (tokens_of(11, 16), []),
        ],
    ),
    ("llama", (0, 1, 0, 1, 0), [], [([], []), ([0], []), ([2**32 - 1], []), (tokens_of(5, 512), [])]),
    ("mla", (7, 8, 0, 1, 0), [], [(tokens_of(i, 64), []) for i in range(2)]),
    ("awkward", (0, 1, 0, 1, 0), [], [(tokens_of(1, 16), [])]),
]

# (model, shard, extras, names)
SHARDS = [
    ("llama", (0, 1, 0, 1, 0), [], [bytes(16), bytes(range(16)), b"\xff" * 16]),
    ("llama", (0, 1, 0, 1, 0), [(LORA, b"sql-adapter@v3")], [bytes(range(16))]),
    (
        "llama",
        (0, 1, 0, 1, 0),
        [(LORA, b"sql-adapter@v3"), (PROMPT_EMBEDS, b"torch.bfloat16:(4096,)")],
        [bytes(range(16))],
    ),
    ("llama", (1, 2, 0, 1, 0), [], [bytes(range(16))]),
    ("mla", (7, 8, 0, 1, 3), [], [hashlib.sha256(bytes([i])).digest()[:16] for i in range(4)]),
]

HEAD = """\
# Test vectors of model fingerprints and block keys; made by scripts/make_key_vectors.py, don't edit.
#
# One statement a line, hexadecimal unless said otherwise ("-" for an empty string):
#   model NAME               starts a model, all fields at their defaults
#   set FIELD VALUE          VALUE: the field's text
#   canonical BYTES          the canonical form of the model so far
#   fingerprint BYTES        its SHA-256
#   chain NAME R S P Q G     starts a chain; decimal tp_rank tp_size pp_rank pp_size kv_group
#   request_extra KIND BYTES
#   root KEY                 the chain's root, with the extras above
#   tokens ID...             token ids of the next block, decimal; may be none
#   block_extra KIND BYTES
#   key KEY                  the block's key; the next block goes on from here
#   shard NAME R S P Q G     starts keys of a shard derived from names; decimal, as for chain
#   shard_extra KIND BYTES
#   shard_root KEY           the parent of the first block, with the extras above
#   name KEY                 a block's name
#   shard_key KEY            its key
"""


def hexed(data):
    return data.hex() or "-"


def render():
    lines = [HEAD]
    fingerprints = {}
    for name, spec in (("llama", LLAMA), ("mla", MLA), ("awkward", AWKWARD)):
        form = canonical(spec)
        fingerprints[name] = hashlib.sha256(form).digest()
        lines.append("model " + name)
        lines += [f"set {field} {hexed(spec[field].encode())}" for field in FIELDS if field in spec]
        lines += ["canonical " + hexed(form), "fingerprint " + hexed(fingerprints[name]), ""]
    for name, shard, extras, blocks in CHAINS:
        lines.append(" ".join(["chain", name, *(str(part) for part in shard)]))
        lines += [f"request_extra {kind} {hexed(value)}" for kind, value in extras]
        parent = root_key(fingerprints[name], shard, extras)
        lines.append("root " + hexed(parent))
        for tokens, block_extras in blocks:
            parent = block_key(parent, tokens, block_extras)
            lines.append(" ".join(["tokens", *(str(token) for token in tokens)]))
            lines += [f"block_extra {kind} {hexed(value)}" for kind, value in block_extras]
            lines.append("key " + hexed(parent))
        lines.append("")
    for name, shard, extras, names in SHARDS:
        lines.append(" ".join(["shard", name, *(str(part) for part in shard)]))
        lines += [f"shard_extra {kind} {hexed(value)}" for kind, value in extras]
        root = shard_root(fingerprints[name], shard, extras)
        lines.append("shard_root " + hexed(root))
        for each in names:
            lines += ["name " + hexed(each), "shard_key " + hexed(shard_key(root, each))]
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Test vectors of model fingerprints and block keys.")
    parser.add_argument("--check", metavar="FILE", help="compare with FILE instead of writing to stdout")
    arguments = parser.parse_args()
    if arguments.check is None:
        sys.stdout.write(render())
        return 0
    with open(arguments.check, encoding="utf-8") as file:
        same = file.read() == render()
    if not same:
        print(f"{arguments.check} differs from what this script makes", file=sys.stderr)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
