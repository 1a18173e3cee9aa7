"""A worker process with a small model and a marketplace."""

from __future__ import annotations

import torch

from kvclient.transformers import Marketplace
from support.models import make_model


class ModelWorker:
    def __init__(self, socket: str, architecture: str, name: str) -> None:
        self.model = make_model(architecture)
        self.market = Marketplace(self.model, socket_path=socket, name=name, model_id="test", revision="r1")

    def generate(self, tokens: list[int], new_tokens: int) -> list[int]:
        output = self.market.generate(torch.tensor([tokens]), max_new_tokens=new_tokens, do_sample=False)
        self.market.region.flush(5.0)
        return list(output[0, len(tokens) :].tolist())

    def stats(self) -> dict[str, object]:
        return dict(vars(self.market.stats))


def make(socket: str, architecture: str, name: str) -> ModelWorker:
    return ModelWorker(socket, architecture, name)
