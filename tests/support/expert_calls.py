"""An independent record of what a model's experts are called with, for tests of the recorder.

It hooks modules by the names of their classes and arguments alone, and asks nothing of the project.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["ExpertCalls", "generated", "ragged"]

_CLASSES = {"zaya": 1}
"""Classes beyond the experts that a gate maps to expert 0 with weight 0."""


class ExpertCalls:
    """The calls of each bank of experts, in order: ids and weights `[T, k]` of each pass.

    Ids of no real expert are -1, and their weights 0.
    """

    def __init__(self, model: Any) -> None:
        self.calls: dict[str, list[tuple[Any, Any]]] = {}
        self.hidden: dict[str, list[Any]] = {}
        self.handles: list[Any] = []
        kind = getattr(model.config, "model_type", "")
        for name, module in model.named_modules():
            self._hook(kind, name, module)

    def _hook(self, kind: str, name: str, module: Any) -> None:
        cls = type(module).__name__
        if kind == "switch_transformers" and "decoder" not in name:
            return
        if cls == "Llama4Router":
            self.handles.append(module.register_forward_hook(self._llama4(name)))
        elif cls == "JetMoeTopKGating" and ".mlp." in name:
            self.handles.append(module.register_forward_hook(self._jetmoe(name)))
        elif name.endswith(".experts") and not cls.startswith(("Llama4", "JetMoe")):
            self.handles.append(module.register_forward_pre_hook(self._usual(kind, name)))

    def _usual(self, kind: str, name: str) -> Any:
        def before(module: Any, args: Any) -> None:
            ids, weights = args[1].clone(), args[2].clone()
            if kind == "switch_transformers":
                sent = ids.sum(-1) > 0
                ids = torch.where(sent, ids.argmax(-1), -1)
            elif kind == "longcat_flash":
                ids[ids >= module.num_routed_experts] = -1
            elif kind in _CLASSES:
                ids[weights == 0] = -1
            self._keep(name, ids, torch.where(ids < 0, torch.zeros_like(weights), weights))

        return before

    def _llama4(self, name: str) -> Any:
        def after(module: Any, args: Any, output: Any) -> None:
            ids = output[1].topk(module.top_k, dim=-1).indices.sort(dim=-1).values
            _, order = output[1].gather(-1, ids).sort(dim=-1, descending=True, stable=True)
            ids = ids.gather(-1, order)
            self._keep(name, ids, output[0].gather(-1, ids))

        return after

    def _jetmoe(self, name: str) -> Any:
        def after(module: Any, args: Any, output: Any) -> None:
            logits, ids = output[4].topk(module.top_k, dim=-1)
            self._keep(name, ids, logits.softmax(-1).to(args[0].dtype))

        return after

    def _keep(self, name: str, ids: Any, weights: Any) -> None:
        self.calls.setdefault(name, []).append((ids, weights.float()))

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def columns(self, num_sequences: int) -> tuple[Any, Any]:
        """Return ids and weights `[B, C, L, k]` of all passes, as the recorder should."""
        layers = []
        for calls in self.calls.values():
            parts = [
                [part.reshape(num_sequences, -1, part.shape[-1]) for part in call] for call in calls
            ]
            layers.append([torch.cat(side, dim=1) for side in zip(*parts, strict=True)])
        ids, weights = (torch.stack(side, dim=2) for side in zip(*layers, strict=True))
        return ids.numpy(), weights.numpy()


def ragged(prompts: Any) -> tuple[Any, Any]:
    """Return left-padded token ids and their mask."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


def generated(model: Any, prompts: Any, tokens: int = 3) -> Any:
    """Return what `generate` makes of left-padded prompts."""
    ids, mask = ragged(prompts)
    with torch.no_grad():
        return model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False
        )
