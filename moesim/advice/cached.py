"""What an expert cache on the GPU would give instead of layers whose experts stay on the CPU.

No engine that advice prices has one, so it stands beside the recommendation. The GPU memory that is
left beside all other weights becomes slots, as many in each layer. LRU fills them, and missing
experts are copied. How often it hits is what is published (`moesim.trace.localities`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from moesim.advice.advice import Advice
from moesim.advice.choice import Choice, Memory, memory_of
from moesim.advice.price import Priced, Pricer, Span
from moesim.advice.question import Question
from moesim.measured.cached import ExpertCache, over_hit_rates
from moesim.measured.predict import Declined
from moesim.trace.localities import HitRates, Sizes, hit_rates_like

__all__ = ["Cached", "cached_of", "slots_of"]


@dataclass(frozen=True, slots=True)
class Cached:
    """An expert cache with its speeds, whose intervals hold those of the hit rate."""

    priced: Priced
    slots: int
    experts: int
    hits: HitRates

    def plain(self) -> dict[str, Any]:
        """Return the cache as plain data."""
        priced, hits = self.priced, self.hits
        spans = {
            "decode_tok_s": priced.decode,
            "prefill_tok_s": priced.prefill,
            "first_token_s": priced.first_token_s,
            "request_s": priced.request_s,
        }
        return {
            "policy": "lru",
            "slots_per_layer": self.slots,
            "experts_per_layer": self.experts,
            "hit_rate": {"value": hits.value, "low": hits.low, "high": hits.high},
            "hit_rate_published": hits.published,
            "hit_rate_source": hits.source,
            "gpu_bytes": priced.memory.gpu,
            **{name: span.plain() for name, span in spans.items()},
        }


def cached_of(advice: Advice) -> Cached | Declined:
    """Return the cache for the format and batch of the recommended choice, or why there is none."""
    question, best = advice.question, advice.best.choice
    shape = question.model.shape
    if question.machine.hardware.unified or best.placement == "gpu":
        return Declined("all experts are in GPU memory")
    if best.disk:
        return Declined("host memory does not hold all experts")
    if best.whole:
        return Declined("nothing of the model is on a GPU")
    if question.load > 1:
        return Declined("hit rates are published for one sequence at a time")
    choice = replace(best, cpu_layers=len(shape.moe_layers))
    sizes = Sizes(choice.cpu_layers, shape.num_experts, shape.top_k)
    slots = slots_of(question, choice)
    memory = _memory(question, choice, slots)
    if slots < sizes.top_k:
        return Declined(f"GPU memory has {slots} slots a layer, and a token wants {sizes.top_k}")
    if not memory.fits:
        return Declined("host memory does not hold all experts")
    hits = hit_rates_like(shape.name, slots / sizes.experts, sizes)
    low, middle, high = (
        Pricer(question, ExpertCache(slots, rate)) for rate in (hits.low, hits.value, hits.high)
    )
    priced = middle.price(choice)
    if isinstance(priced, Declined):
        return priced
    predictions = []
    for each in (low, middle, high):
        answer = each.decode(choice)
        if isinstance(answer, Declined):
            return answer
        predictions.append(answer)
    decode = Span.of(over_hit_rates(*predictions))
    return Cached(replace(priced, memory=memory, decode=decode), slots, sizes.experts, hits)


def slots_of(question: Question, choice: Choice) -> int:
    """Return the slots of each layer in the GPU memory that a choice leaves."""
    experts = sum(question.model.weights(choice.format).experts)
    left = max(0, memory_of(question, choice).gpu_left)
    number = question.model.shape.num_experts
    return min(left * number // experts, number - 1)


def _memory(question: Question, choice: Choice, slots: int) -> Memory:
    memory = memory_of(question, choice)
    experts = sum(question.model.weights(choice.format).experts)
    share = -(-experts * slots // question.model.shape.num_experts)
    return replace(memory, gpu={**memory.gpu, "experts": share})
