"""A worker process with the trained model under Transformers, with and without the marketplace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from kvclient.transformers import Marketplace


class RealModelWorker:
    def __init__(self, socket: str, folder: Path, name: str) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.market = Marketplace(self.model, socket_path=socket, name=name)

    def answer(self, tokens: list[int], new_tokens: int, shared: bool) -> tuple[list[int], list[dict[int, float]]]:
        """Greedy tokens, and the log-probabilities of the five likeliest at each."""
        generate: Any = self.market.generate if shared else self.model.generate
        output = generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        if shared:
            self.market.region.flush(5.0)
        likeliest = []
        for logits in output.logits:
            values, indices = torch.log_softmax(logits[0].float(), dim=-1).topk(5)
            likeliest.append(dict(zip(indices.tolist(), values.tolist(), strict=True)))
        return output.sequences[0, len(tokens) :].tolist(), likeliest

    def stats(self) -> dict[str, Any]:
        return dict(vars(self.market.stats))


def make(socket: str, folder: Path, name: str) -> RealModelWorker:
    return RealModelWorker(socket, folder, name)
