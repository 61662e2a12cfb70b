"""One layer event: a layer's routed experts on the rows of a step, on the device or on the CPU.

The server computes experts in any order and any number of calls. It may compute some on the device,
and at the same time others on the CPU, from host memory. For the latter it first sends the hidden
states to the host (`send_inputs`) and brings the outputs back afterwards (`return_outputs`). The
output of each assignment is kept apart, and outputs are summed in expert order. So neither the
order of arrival nor the placement changes the order of the sum.

Three threads may call at once: those of the two compute lanes, and those of the copies.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from moesim.errors import InvariantError
from moesim.executor.expert_buffers import Weights, swiglu
from moesim.executor.state_copies import at_once, landing, staged, to_device, to_host

__all__ = ["LayerEvent"]

_Expert = tuple[int, int, Weights]  # the expert, its announced rows, and its weights


class _Order(NamedTuple):
    """The assignments of a layer event, A = T x k.

    They are sorted by expert, within an expert by place and row, unused ones last.
    """

    places: npt.NDArray[np.int64]
    """`[A]`: each one's position in `[k, T]`, flat."""
    rows: npt.NDArray[np.int64]
    """`[A]`."""
    slots: npt.NDArray[np.int64]
    """`[A]`: where the assignments of row 0 are, then those of row 1; each row's by expert."""
    edges: list[int]
    """The assignments of expert e are those from `edges[e]` to `edges[e + 1]`."""


class _Inputs:
    """The states and gate weights of all rows in one memory, arranged by expert."""

    def __init__(self, hidden_TH: Tensor, weights_Tk: Tensor, order: _Order) -> None:
        self._hidden_TH = hidden_TH
        # One copy to the device instead of three.
        stacked = torch.from_numpy(np.stack([order.rows, order.slots, order.places]))
        placed = staged(stacked, hidden_TH.device)
        self._rows_A, self.slots_A = placed[0], placed[1]
        self._gates_A1 = weights_Tk.T.reshape(-1)[placed[2]][:, None]

    def compute(self, template: Any, part: slice, weights: Weights) -> Tensor:
        """Return the weighted outputs of one expert for its assignments `part`."""
        states = self._hidden_TH.index_select(0, self._rows_A[part])
        return swiglu(template, states, weights) * self._gates_A1[part]


class _Sent(NamedTuple):
    """Copies of the states `[T, H]` and gate weights `[T, k]` in host memory."""

    hidden: Tensor
    weights: Tensor
    landed: Callable[[], bool]


class _Group(NamedTuple):
    """The outputs of experts that the CPU computed in one call, one expert after another."""

    parts: Sequence[slice]
    outputs: Tensor
    landed: Callable[[], bool]

    @property
    def size(self) -> int:
        """The number of assignments."""
        return len(self.outputs)


class LayerEvent:
    """The computation of one layer's experts on its rows.

    `hidden_TH` and `weights_Tk` are on the device; `ids()` returns `[T, k]` on the host, -1 where a
    place is unused. `template` is the model's own module, which has the activation function.
    """

    def __init__(
        self,
        layer: int,
        template: Any,
        num_experts: int,
        hidden_TH: Tensor,
        weights_Tk: Tensor,
        ids: Callable[[], npt.NDArray[np.int64]],
    ) -> None:
        self.layer = layer
        self._template = template
        self._num_experts = num_experts
        self._hidden_TH = hidden_TH
        self._weights_Tk = weights_Tk
        self._ids = ids
        self._lock = threading.Lock()  # of all that follows
        self._order: _Order | None = None
        self._begun: set[int] = set()  # experts whose computation has begun on any lane
        self._left = 0  # assignments whose outputs are not on the device
        # On the device; only the thread of its compute lane uses these.
        self._inputs: _Inputs | None = None
        self._outputs = hidden_TH.new_empty(0)
        # On the host.
        self._sent: list[_Sent] = []
        self._num_computing = 0  # assignments that the CPU computes now
        self._computed: list[_Group] = []
        self._returned: list[_Group] = []

    # --- on the device's compute lane ---

    def prepare(self) -> None:
        """Sort the assignments by expert and bring their order to the device.

        Without this call, the first computation does so. The ids must be known.
        """
        self._on_device()

    def compute(self, expert: int, tokens: int, weights: Weights) -> None:
        """Compute one expert on the device.

        Raise `InvariantError` unless `tokens` rows are routed to it, or if it is computed already.
        """
        part = self._claim(expert, tokens)
        inputs = self._on_device()
        self._outputs[part] = inputs.compute(self._template, part, weights)
        with self._lock:
            self._left -= tokens

    def total(self) -> Tensor:
        """Return `[T, H]`: the weighted outputs of each row's experts, summed in expert order.

        Raise `InvariantError` if an assignment was not computed, or its output is not back.
        """
        self._check_complete()
        inputs = self._on_device()
        for group in self._returned:
            self._take_in(group)
        parts = self._outputs.index_select(0, inputs.slots_A).view(
            len(self._hidden_TH), -1, self._outputs.shape[1]
        )
        # One after another: `sum` chooses its own order, and floats depend on the order.
        total = parts[:, 0]
        for place in range(1, parts.shape[1]):
            total = total + parts[:, place]
        return total

    # --- between the memories ---

    def send_inputs(self) -> None:
        """Begin to copy the states and gate weights of all rows to host memory.

        Each call copies them again, and an earlier copy may be in use meanwhile.
        """
        hidden_TH, weights_Tk = to_host(self._hidden_TH), to_host(self._weights_Tk)
        sent = _Sent(hidden_TH, weights_Tk, landing(self._hidden_TH.device))
        with self._lock:
            self._sent.append(sent)

    def return_outputs(self) -> None:
        """Begin to copy all outputs that the CPU has computed to the device.

        An earlier call may have taken them already. Raise `InvariantError` if none was computed.
        """
        with self._lock:
            if not self._computed and not self._returned:
                raise InvariantError(
                    4,
                    f"outputs of layer {self.layer} are brought back before the CPU has computed "
                    "any",
                )
            groups, self._computed = self._computed, []
        device = self._hidden_TH.device
        moved = [to_device(group.outputs, device) for group in groups]
        landed = landing(device)
        with self._lock:
            for group, outputs in zip(groups, moved, strict=True):
                self._returned.append(_Group(group.parts, outputs, landed))
                self._left -= group.size

    # --- on the CPU's compute lane ---

    def compute_on_host(self, experts: Iterable[_Expert]) -> None:
        """Compute experts on the CPU; weights are in host memory.

        Raise `InvariantError` unless the states are in host memory, and as `compute` does.
        """
        sent = next((sent for sent in self._sent if sent.landed()), None)
        if sent is None:
            raise InvariantError(
                4,
                f"experts of layer {self.layer} are computed on the CPU before its states landed "
                "in host memory",
            )
        inputs = _Inputs(sent.hidden, sent.weights, self._arranged())
        claimed = [
            (self._claim(expert, tokens, on_host=True), weights)
            for expert, tokens, weights in experts
        ]
        count = sum(part.stop - part.start for part, _ in claimed)
        shape, dtype = (count, sent.hidden.shape[1]), sent.hidden.dtype
        outputs = torch.empty(shape, dtype=dtype, pin_memory=sent.hidden.is_pinned())
        start = 0
        for part, weights in claimed:
            stop = start + part.stop - part.start
            outputs[start:stop] = inputs.compute(self._template, part, weights)
            start = stop
        with self._lock:
            self._num_computing -= count
            self._computed.append(_Group([part for part, _ in claimed], outputs, at_once))

    # --- behind it ---

    def _claim(self, expert: int, tokens: int, *, on_host: bool = False) -> slice:
        """Return the assignments of an expert whose computation begins now."""
        edges = self._arranged().edges
        start, stop = edges[expert], edges[expert + 1]
        if stop - start != tokens:
            raise InvariantError(
                4,
                f"layer {self.layer}: {tokens} rows were announced for expert {expert}, "
                f"{stop - start} are routed to it",
            )
        with self._lock:
            if expert in self._begun:
                raise InvariantError(4, f"layer {self.layer}: expert {expert} is computed twice")
            self._begun.add(expert)
            if on_host:
                self._num_computing += tokens
        return slice(start, stop)

    def _check_complete(self) -> None:
        self._arranged()
        with self._lock:
            away = self._num_computing + sum(group.size for group in self._computed)
            # Not landed is the same mistake: the device would read what is not there yet.
            away += sum(group.size for group in self._returned if not group.landed())
            left = self._left
        if away:
            raise InvariantError(
                4,
                f"layer {self.layer}: outputs of {away} of its assignments were computed on the "
                "CPU and are not back on the device",
            )
        if left:
            raise InvariantError(
                4, f"layer {self.layer}: {left} of its assignments were never computed"
            )

    def _take_in(self, group: _Group) -> None:
        """Put the outputs of experts that the CPU computed among those of the device."""
        if group.outputs.is_cuda:  # another stream allocated it, and must not reuse it too early
            group.outputs.record_stream(torch.cuda.current_stream())
        start = 0
        for part in group.parts:
            stop = start + part.stop - part.start
            self._outputs[part] = group.outputs[start:stop]
            start = stop

    def _on_device(self) -> _Inputs:
        if self._inputs is None:
            order = self._arranged()
            self._inputs = _Inputs(self._hidden_TH, self._weights_Tk, order)
            self._outputs = self._hidden_TH.new_empty(len(order.rows), self._hidden_TH.shape[1])
            # Unused places are summed too, and no expert fills them.
            self._outputs[order.edges[-1] :] = 0
        return self._inputs

    def _arranged(self) -> _Order:
        """Arrange on first use: at construction the ids may not be on the host yet."""
        with self._lock:
            if self._order is None:
                self._order = _arrange(self._ids(), self._num_experts)
                self._left = self._order.edges[-1]
            return self._order


def _arrange(ids_Tk: npt.NDArray[np.int64], num_experts: int) -> _Order:
    ids = ids_Tk.T.reshape(-1)
    ids = np.where(ids < 0, num_experts, ids)
    order = np.argsort(ids, kind="stable")
    rows = order % len(ids_Tk)
    counts = np.bincount(ids, minlength=num_experts + 1)
    edges = [0, *np.cumsum(counts[:-1]).tolist()]
    return _Order(order, rows, np.argsort(rows, kind="stable"), edges)
