"""A measured profile: the figures, the operations, and all raw points beside them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moesim.calibrate.copies import CopyPoint
from moesim.calibrate.samples import Samples
from moesim.calibrate.times import fit_operations
from moesim.config.yaml_document import dump_document
from moesim.cost.measured import OperationCost
from moesim.files import whole_file
from moesim.hardware.hardware import Hardware, Link, hardware_from
from moesim.hardware.measurement import OperationTimes
from moesim.simulate.build import Plan

__all__ = ["Profile", "figure"]

_NO_LINK: Final = Link(0, 10**15, 10**15)
_COLUMNS: Final = (
    *("kind", "duration_ns", "layer", "first", "tokens", "kv_tokens", "pairs", "sampled"),
    *("sequences", "copies", "before", "rows", "landed", "fresh", "nbytes", "pinned"),
)


def figure(value: Any, source: str) -> dict[str, Any]:
    """Return one measured figure in the form of a profile."""
    return {"value": value, "kind": "measured", "source": source}


@dataclass(frozen=True, slots=True)
class Profile:
    """The result of a calibration. `data` is the profile as plain data."""

    data: Mapping[str, Any]
    times: OperationTimes
    samples: Samples
    copies: tuple[CopyPoint, ...]
    rounds: int
    narrow: bool
    """Whether all intervals became narrow within the time budget."""
    link: Link = _NO_LINK
    """What a copy to the device takes by itself."""
    links: Mapping[str, Link] | None = None
    """The measured links by lane; None where they were emulated."""

    def __repr__(self) -> str:
        width = "narrow" if self.narrow else "wide"
        return f"<Profile {self.data['name']}: {self.rounds} rounds, intervals {width}>"

    def hardware(self) -> Hardware:
        """Return the resolved profile."""
        return hardware_from(self.data, "the measured profile")

    def priced(self, plan: Plan) -> Plan:
        """Return the plan with the measured operations as costs, but its own memory.

        Emulated links are the plan's own too, and real ones are as measured.
        """
        hardware = replace(plan.cost.hardware, operations=(self.times,))
        if self.links is not None:
            # The size of a chunk is a choice, so the plan's own stays.
            h2d = replace(self.links["h2d"], chunk_bytes=hardware.h2d.chunk_bytes)
            d2h = replace(self.links["d2h"], chunk_bytes=hardware.d2h.chunk_bytes)
            hardware = replace(hardware, h2d=h2d, d2h=d2h)
        cost = OperationCost(hardware, plan.cost.shape, self.times, pinned=plan.cost.pinned)
        return replace(plan, cost=cost)

    def refined(self, samples: Samples) -> Profile:
        """Return the profile with its operations fitted to these samples as well."""
        every = Samples()
        every.add(self.samples)
        every.add(samples)
        times = fit_operations(self.times.shape.resolve(), every, self.link)
        data = {**self.data, "operations": [times.model_dump(exclude_defaults=True)]}
        return replace(self, data=data, times=times, samples=every)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the profile, and its raw points as CSV beside it. Raise `OutputError`."""
        path = Path(path)
        points = path.with_suffix(".points.csv")
        measured = {**self.data["measured"], "points": points.name}
        text = dump_document({**self.data, "measured": measured})
        # The points first: the profile names them, so it must not exist without them.
        with whole_file(points) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows())
        with whole_file(path) as partial:
            partial.write_text(text, encoding="utf-8")

    def _rows(self) -> Iterator[dict[str, Any]]:
        samples = self.samples
        for work, ns in samples.experts:
            rows = " ".join(map(str, work.tokens))
            yield {
                "kind": "experts",
                "duration_ns": ns,
                "rows": rows,
                "landed": int(work.landed),
                "fresh": int(work.fresh),
                "copies": work.copies,
            }
        for kind, layers in (("front", samples.fronts), ("dense", samples.dense)):
            for layer, ns in layers:
                flags = {"first": int(layer.first), "copies": layer.copies}
                more = {"layer": layer.layer, **flags}
                yield {"kind": kind, "duration_ns": ns, **layer.batch._asdict(), **more}
        for tail, ns in samples.tails:
            batch = tail.batch._asdict()
            more = {"nbytes": tail.nbytes, "copies": tail.copies}
            yield {"kind": "tail", "duration_ns": ns, **batch, **more}
        for back, ns in samples.readbacks:
            more = {"nbytes": back.nbytes, "copies": back.copies, "before": back.before}
            yield {"kind": "readback", "duration_ns": ns, **more}
        for nbytes, ns in samples.copies:
            yield {"kind": "expert copy", "duration_ns": ns, "nbytes": nbytes}
        for point in self.copies:
            yield {
                "kind": point.direction,
                "duration_ns": point.duration_ns,
                "nbytes": point.nbytes,
                "pinned": int(point.pinned),
            }
