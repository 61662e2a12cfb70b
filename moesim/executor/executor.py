"""The executor: a real model's forward pass, cut into the operations that a server asks for.

The forward pass of a Hugging Face model runs in a greenlet. When it reaches the routed experts of a
layer, or the end of a layer without routed experts, it switches back to its caller in the same
thread. The next operation continues it. Attention, router and layers are the model's own code.
Experts run outside of it, from buffers that the server's copies fill, or on the CPU from host
memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]
from torch import Tensor, nn

from moesim.errors import InvariantError, UsageError, first_line
from moesim.executor.attention import KvStore, attach, checked_config
from moesim.executor.batch import Batch, positions_of
from moesim.executor.expert_buffers import Early, Pool, StandIn
from moesim.executor.layer_event import LayerEvent
from moesim.executor.state_copies import staged
from moesim.executor.supported_models import check_run_by_layers, top_k_of
from moesim.executor.token_router import PackedRouter
from moesim.hardware.ops import Dense, Experts, Front, Op, Tail
from moesim.record.calls import parameters
from moesim.record.routers import find_moe_layers

__all__ = ["Executor"]

_Stop = tuple[type[Op], int]  # the operation that a forward pass has just ended, and its layer


class Executor:
    """Runs `model` in place until `close`.

    Experts move to host memory, attention is replaced, and all other weights move to `device`
    (None: they stay where they are). `close` restores the model on the host.

    `buffers` is the number of expert-sized buffers on the device. `distinct_experts` limits how
    many random experts a model without weights gets (`models.shaped_model`). `pinned` page-locks
    the experts on the host. With a `prediction_depth`, the routers of that many following layers
    also run on each layer's hidden state.

    A step is `begin`, then `run` with `[Dense.., Front, Experts..]` for each MoE layer, `Dense..`
    and `Tail`. A `fetch` after a `Front` makes `ids` known, and must come before its `Experts`. A
    `fetch` after `Tail` makes `sampled` known. One thread makes all calls of `run` in a step.

    After the `fetch` of a layer, another thread may compute other experts of the layer on the CPU:
    `send_states` (which needs no `fetch`), `run_on_host`, `return_states`. All three must be over
    before the next `run` but `Experts`.

    A decoupled router chooses before a step, and the step's batch holds its choice. The router runs
    over tokens that arrive (`route`), and in `Tail` over sampled tokens (`sampled_routes`).

    Raises `UsageError` that names what is not supported, for a model that cannot be run this way.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        buffers: int,
        distinct_experts: int | None = None,
        device: str | None = None,
        pinned: bool = False,
        prediction_depth: int = 0,
        seed: int = 0,
    ) -> None:
        checked_config(model)
        self._model: Any = model.eval()
        there = next(p.device for p in model.parameters() if not p.is_meta)
        self._device = there if device is None else torch.device(device)
        self._moe = moe = find_moe_layers(model)
        if prediction_depth:
            for layer in moe[1:]:
                layer.check_predictable()
        self._prediction_depth = prediction_depth
        self.num_layers = len(moe)
        self.num_experts = moe[0].num_experts
        check_run_by_layers(model, moe)
        self._templates: list[Any] = [layer.experts for layer in moe]
        self._pool = Pool(
            self._templates,
            self.num_experts,
            buffers=buffers,
            device=self._device,
            distinct=distinct_experts,
            pinned=pinned,
            seed=seed,
        )
        self.top_k: int = top_k_of(model)
        self.host: Any = self._pool.host
        self.buffers: Any = self._pool.buffers
        self.expert_bytes = self._pool.expert_bytes
        self.host_of: Callable[[int], Any] = self._pool.host_of
        self.model_layers = [layer.model_layer for layer in moe]
        self._shared: list[Early | None] = []
        self._kv = KvStore()
        self._router = PackedRouter.of(model)
        with ExitStack() as undo:
            for number, layer in enumerate(moe):
                self._replace(number, layer.block, layer.experts, undo)
            self.num_model_layers = self._watch_dense_layers(moe[0].name, undo)
            undo.callback(attach(model, self._kv))
            if self._device != there:
                model.to(self._device)
                # Undone first, while the experts are not in the model, so they stay on the host.
                undo.callback(model.to, there)
            self._undo = undo.pop_all()
        self._batch = Batch(())
        self._pass: greenlet | None = None
        self._event: LayerEvent | None = None
        self._newest: Tensor | None = None  # the tensor that the next fetch brings
        self._fetched = torch.empty(0)
        self._ids: list[npt.NDArray[np.int64] | None] = []
        self.logits = torch.empty(0)

    # --- the server's side, between steps ---

    def begin(self, batch: Batch) -> None:
        """Begin the next step.

        Raise `InvariantError` if arrays and spans disagree on T, or if the batch of a model with a
        decoupled router has no experts.
        """
        total = sum(span.tokens for span in batch.spans)
        for name, ids in (("token_ids", batch.token_ids), ("expert_ids", batch.expert_ids)):
            if ids is not None and len(ids) != total:
                raise InvariantError(4, f"{total} rows in the step, {len(ids)} {name}")
        if self._router is not None and batch.expert_ids is None:
            raise InvariantError(4, "a decoupled router chooses experts before a step, not in it")
        self._batch = batch
        self._pass = self._event = self._newest = None
        chosen = batch.expert_ids
        self._ids = [None if chosen is None else chosen[:, x] for x in range(self.num_layers)]
        self._kv.begin(batch.spans)

    def ids(self, layer: int) -> npt.NDArray[np.int64]:
        """Return `[T, k]`: the experts chosen at trace layer `layer` of this step, -1 where unused.

        Raise `InvariantError` if they are not fetched.
        """
        ids = self._ids[layer]
        if ids is None:
            ids = self._ids[layer] = self._fetched_at(layer)[:, : self.top_k]
        return ids

    def predicted(self, layer: int, depth: int) -> npt.NDArray[np.int64]:
        """Return `[T, k]`: the choice of the router `depth` layers later for the state at `layer`.

        `layer` is the one whose ids were fetched last. The result is `[T, 0]` if that router did
        not run.
        """
        return self._fetched_at(layer)[:, depth * self.top_k : (depth + 1) * self.top_k]

    def sampled(self) -> list[int]:
        """Return the greedy token of each span that samples, in order, after the last fetch."""
        return [int(token) for token in self._fetched[:, 0].tolist()]

    def route(self, batch: Batch) -> npt.NDArray[np.float64]:
        """Return `[T, 2]`: a decoupled router's expert and its weight for tokens that arrive."""
        assert self._router is not None
        with torch.inference_mode():
            routes = self._router.route(self._put(batch.token_ids), batch.spans)
            return np.asarray(routes.cpu().numpy())

    def sampled_routes(self) -> npt.NDArray[np.float64]:
        """Return `[samples, 2]`: a decoupled router's expert and weight for `sampled` tokens."""
        return np.asarray(self._fetched[:, 1:].numpy())

    def release(self, sequence: int) -> None:
        """Forget a sequence's keys and values."""
        self._kv.release(sequence)
        if self._router is not None:
            self._router.release(sequence)

    # --- the lanes' side ---

    def run(self, op: Op, places: Sequence[int] = ()) -> None:
        """Run one operation; for `Experts`, `places[i]` is the buffer of `op.keys[i]`.

        Raise `InvariantError` for operations out of order, or if an expert's number of rows is not
        that of the operation.
        """
        with torch.inference_mode():
            if isinstance(op, Experts):
                self._run_experts(op, places)
            else:
                self._resume(op)

    def run_on_host(self, op: Experts, rows: Sequence[Tensor] | None = None) -> None:
        """Compute experts on the CPU, with the layer's states in host memory.

        `rows[i]` `[elements]` has the weights of `op.keys[i]` in host memory (None: `host_of` has
        them). Raise `InvariantError` if the states are not there, and as `run` does.
        """
        with torch.inference_mode():
            first = op.layer * self.num_experts
            if rows is None:
                rows = [self.host_of(key) for key in op.keys]
            self._event_of(op.layer, "experts").compute_on_host(
                (key - first, tokens, self._pool.weights_of(row))
                for key, tokens, row in zip(op.keys, op.tokens, rows, strict=True)
            )

    def send_states(self, layer: int) -> None:
        """Copy the hidden states and gate weights of all rows of a layer event to host memory.

        Raise `InvariantError` if the layer's router has not run.
        """
        with torch.inference_mode():
            self._event_of(layer, "states").send_inputs()

    def return_states(self, layer: int) -> None:
        """Copy the outputs that `run_on_host` has computed since the last call to the device.

        Raise `InvariantError` if it has computed none in this layer event.
        """
        with torch.inference_mode():
            self._event_of(layer, "outputs").return_outputs()

    def fetch(self) -> None:
        """Bring the newest ids, or the sampled tokens, to the host.

        Raise `InvariantError` if there are none.
        """
        newest = self._newest
        if newest is None:
            raise InvariantError(4, "there is nothing to bring to the host")
        # Nothing to copy; the lane still asks, so that the order of operations is the same.
        if newest.device.type == "cpu":
            self._fetched = newest
            return
        self._fetched = torch.empty(newest.shape, dtype=newest.dtype, pin_memory=True)
        self._fetched.copy_(newest, non_blocking=True)

    def close(self) -> None:
        """Restore the model and release all memory; the executor cannot be used afterwards."""
        self._undo.close()
        self._pass = self._event = self._newest = self._model = self._router = None
        self._moe.clear()
        self._templates.clear()
        self._shared.clear()
        self._kv = KvStore()
        self._pool.close()
        self.host = self.buffers = self.logits = torch.empty(0)

    # --- behind it ---

    def _fetched_at(self, layer: int) -> npt.NDArray[np.int64]:
        """Return the fetched ids and predictions of the current layer event."""
        if self._event is None or self._event.layer != layer:
            raise InvariantError(4, f"ids of layer {layer} are read outside of its layer event")
        return self._fetched.numpy().astype(np.int64, copy=False)

    def _run_experts(self, op: Experts, places: Sequence[int]) -> None:
        event = self._event_of(op.layer, "experts")
        first = op.layer * self.num_experts
        for key, tokens, place in zip(op.keys, op.tokens, places, strict=True):
            event.compute(key - first, tokens, self._pool.weights_in(place))

    def _event_of(self, layer: int, what: str) -> LayerEvent:
        """Return the current layer event. Raise `InvariantError` if it is not that of `layer`."""
        event = self._event
        if event is None or event.layer != layer:
            raise InvariantError(4, f"{what} of layer {layer} before its router")
        return event

    def _resume(self, op: Op) -> None:
        """Run the forward pass to the end of `op`."""
        if self._pass is None:
            self._pass = greenlet(self._forward)
        requested = (type(op), getattr(op, "layer", 0))
        reached: _Stop = self._pass.switch()
        if reached != requested:
            ours, theirs = (
                f"{kind.__name__} of layer {layer}" for kind, layer in (reached, requested)
            )
            raise InvariantError(4, f"the model ended {ours}, but the server asked for {theirs}")

    def _forward(self) -> _Stop:
        """Run the whole step, up to the sampled tokens. It runs in the greenlet."""
        spans = self._batch.spans
        positions = positions_of(spans)
        tokens: Any = self._batch.token_ids
        if tokens is None:  # a replay of a trace has no text, and any ids take the same time
            tokens = positions % self._model.config.vocab_size
        token_ids = self._put(tokens)
        ends = np.cumsum([span.tokens for span in spans]) - 1
        kept = [int(end) for end, span in zip(ends, spans, strict=True) if span.samples]
        with self._refusals():
            output = self._model(
                input_ids=token_ids[None],
                position_ids=self._put(positions)[None],
                use_cache=False,
                logits_to_keep=self._put(kept),
                **self._paths(),
            )
        if self._kv.layers_attended != self.num_model_layers:
            raise UsageError(
                f"only {self._kv.layers_attended} of {self.num_model_layers} layers of "
                f"{type(self._model).__name__} call an attention function that can be replaced; "
                "decoders must do so in all layers"
            )
        logits = output.logits[0]
        # Some models take no notice of `logits_to_keep`.
        self.logits = logits if len(logits) == len(kept) else logits[self._put(kept)]
        self._newest = self._sample(token_ids)
        return Tail, 0

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Raise `UsageError` where the model's own code does not run on packed sequences."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = first_line(error)
            raise UsageError(
                f"{type(self._model).__name__} cannot be run with its sequences packed into one "
                f"row and its experts in buffers: {reason}"
            ) from error

    def _paths(self) -> dict[str, Tensor]:
        """Return the arguments that give a decoupled model its router's earlier choices."""
        chosen = self._batch.expert_ids
        if self._router is None or chosen is None:
            return {}
        ids, weights = self._put(chosen[:, 0, :1]), self._recorded_weights(0, self._model)
        return {"path_ids": ids[None, :, 0], "path_weights": weights[None, :, 0]}

    def _sample(self, token_ids: Tensor) -> Tensor:
        """Return greedy tokens `[samples, 1]`, or with experts and weights `[samples, 3]`.

        The latter is the result of a decoupled router.
        """
        tokens, spans = self.logits.argmax(dim=-1), self._batch.spans
        if self._router is None:
            return tokens[:, None]
        if self._batch.token_ids is None:
            # Tokens are arbitrary and the trace decides; the router runs only to take its time.
            self._router.route(token_ids, spans)
            return tokens[:, None]
        following = [
            s._replace(position=s.position + s.tokens, tokens=1) for s in spans if s.samples
        ]
        return torch.cat([tokens[:, None].double(), self._router.route(tokens, following)], 1)

    def _put(self, numbers: Any) -> Tensor:
        return staged(torch.from_numpy(np.asarray(numbers, dtype=np.int64)), self._device)

    def _at_experts(self, layer: int, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Stop at the experts of layer `layer` until they are computed. It runs in the greenlet."""
        shared = self._shared[layer]
        # Shared experts first, so that they run while routed experts are copied.
        if shared is not None:
            shared.compute(hidden)
        if self._batch.expert_ids is not None:
            weights = self._recorded_weights(layer, hidden)
        event = LayerEvent(
            layer,
            self._templates[layer],
            self.num_experts,
            hidden,
            weights,
            partial(self.ids, layer),
        )
        self._event, self._newest = event, self._with_predictions(layer, hidden, ids)
        # Known ids are sorted here, so that it is no part of the first expert's time.
        if self._batch.expert_ids is not None:
            event.prepare()
        _pause(Front, self.model_layers[layer])
        self._event = None
        return event.total()

    def _with_predictions(self, layer: int, hidden: Tensor, ids: Tensor) -> Tensor:
        """Return `[T, k x (1 + depths)]`: the ids, then the choices of later routers."""
        later = self._moe[layer + 1 : layer + 1 + self._prediction_depth]
        return (
            torch.cat([ids, *(router.choose(hidden).ids for router in later)], 1) if later else ids
        )

    def _recorded_weights(self, layer: int, like: Any) -> Tensor:
        """Return the batch's gate weights `[T, k]` on the device and of the type of `like`."""
        recorded = self._batch.gate_weights
        if recorded is None:
            shape = (len(self.ids(layer)), self.top_k)
            return torch.full(shape, 1 / self.top_k, device=like.device, dtype=like.dtype)
        weights = torch.from_numpy(np.ascontiguousarray(recorded[:, layer])).to(like.dtype)
        return staged(weights, like.device)

    def _replace(
        self, number: int, block: nn.Module, experts: nn.Module | None, undo: ExitStack
    ) -> None:
        """Replace the routed experts of layer `number`, and its shared experts if there are any."""
        name = next(name for name, child in block.named_children() if child is experts)
        setattr(block, name, StandIn(partial(self._at_experts, number)))
        undo.callback(setattr, block, name, experts)
        shared = getattr(block, "shared_experts", None)
        # Shared experts that take more than states, like weights of their own, stay as they are.
        simple = isinstance(shared, nn.Module) and len(parameters(shared)) == 1
        early = Early(shared) if isinstance(shared, nn.Module) and simple else None
        if early is not None:
            block.shared_experts = early
            undo.callback(setattr, block, "shared_experts", shared)
        self._shared.append(early)

    def _watch_dense_layers(self, name: str, undo: ExitStack) -> int:
        """Stop at the end of each layer without routed experts; return the number of layers.

        `name` is the path of a MoE block; the number in it is that of its layer.
        """
        parts = name.split(".")
        path = parts[: next(n for n, part in enumerate(parts) if part.isdigit())]
        layers: Any = self._model.get_submodule(".".join(path))
        for number, layer in enumerate(layers):
            if number not in self.model_layers:
                hook = layer.register_forward_hook(lambda *_, number=number: _pause(Dense, number))
                undo.callback(hook.remove)
        return len(layers)


def _pause(kind: type[Op], layer: int) -> None:
    """Switch back to the caller, which asked for the finished operation."""
    caller = getcurrent().parent
    assert caller is not None
    caller.switch((kind, layer))
