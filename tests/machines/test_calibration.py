"""Calibration recovers known costs: of a simulated machine with noise, and by hand."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import simpy
from measured_profiles import random_times, tiny_shape

from moesim.calibrate.calibrate import measure
from moesim.calibrate.design import Design, Limits, Subject, design_plan, designs
from moesim.calibrate.fitting import Point, fit, pool, robust, split, verify
from moesim.calibrate.samples import KINDS, Layer, Readback, Samples, read_works
from moesim.calibrate.steps import scaled, step_factor
from moesim.calibrate.times import fit_times
from moesim.cost.measured import OperationCost
from moesim.cost.prices import SimPrices
from moesim.cost.roofline import CostModel
from moesim.errors import UsageError
from moesim.hardware import BatchShape, Experts, Link, load_hardware
from moesim.hardware.measurement import MOST_RATIO, OperationTimes
from moesim.machine.events import EventMachine
from moesim.machine.prices import Durations
from moesim.machine.work import Work
from moesim.serving.run_log import Issued, RunLog
from moesim.simulate.build import build_server

KNOWN = {
    "experts": {
        "call_ns": 20_000,
        "tokens": [1, 4, 16, 64],
        "each_ns": [100_000, 130_000, 300_000, 900_000],
    },
    "front": {
        "base_ns": 90_000,
        "token_ns": 3000,
        "sequence_ns": 12_000,
        "kv_token_ns": 150,
        "pair_ns": 20,
    },
    "first": {"base_ns": 40_000, "token_ns": 500},
    "tail": {"base_ns": 70_000, "token_ns": 100, "sampled_ns": 9000},
    "readback": {"base_ns": 30_000, "byte_ns": 12},
    "landing_ns": 25_000,
    "fetch": {"call_ns": 15_000},
}
LIMITS = Limits(sequences=16, tokens=64, context=100)


def known_cost(**changes: Any) -> OperationCost:
    """Return the costs of the tiny shape that calibration must recover."""
    shape = tiny_shape()
    times = {"shape": random_times(0, shape)["shape"], **KNOWN, **changes}
    return OperationCost(load_hardware("t4"), shape, OperationTimes.model_validate(times))


class Noisy(Durations):
    """Prices with noise: mostly a little too high, sometimes much too high."""

    def __init__(self, cost: CostModel, noise: float, seed: int) -> None:
        self._prices = SimPrices(cost)
        self._noise = noise
        self._rng = random.Random(seed)
        self.landing_ns = self._prices.landing_ns
        self.experts_ns = self._prices.experts_ns
        self.layers_ns = self._prices.layers_ns

    def _late(self, duration_ns: int) -> int:
        if not self._noise:
            return duration_ns
        factor = self._rng.lognormvariate(0, self._noise)
        return round(duration_ns * factor * (5 if self._rng.random() < 0.01 else 1))

    def compute_ns(self, op: Any) -> int:
        return self._late(self._prices.compute_ns(op))

    def chunk_bytes(self, lane: str) -> int | None:
        return self._prices.chunk_bytes(lane)

    def copy_ns(self, lane: str, nbytes: int) -> int:
        return self._late(self._prices.copy_ns(lane, nbytes))

    def readback_ns(self, nbytes: int) -> int:
        return self._late(self._prices.readback_ns(nbytes))


class SimBench:
    """A bench whose machine is a simulated one with known costs."""

    def __init__(self, cost: CostModel, noise: float = 0.0) -> None:
        self.limits = LIMITS
        self.link: Link | None = None
        self.served: list[Design] = []
        self._cost = cost
        self._noise = noise

    def serve(self, design: Design) -> Sequence[Issued]:
        self.served.append(design)
        plan = replace(design_plan(design, Subject(self._cost.shape)), cost=self._cost)
        env = simpy.Environment()
        prices: Any = Noisy(self._cost, self._noise, len(self.served))
        log = RunLog(Issued)
        server = build_server(plan, EventMachine(env, prices), observers=[log])
        env.run(until=env.process(server.run()))
        return log.of(Issued)

    def close(self) -> None:
        pass


DESIGN = Design(4, 16, (9, 3, 20, 1, 7), (4, 5, 3, 6, 4), slots=9, skew=0.8, seed=5)
BATCHES = [BatchShape(*row) for row in ((1, 9, 9, 1, 1), (8, 200, 200, 8, 8), (40, 90, 900, 5, 6))]


def predictions(cost: CostModel) -> list[int]:
    """Return prices of operations of every kind."""
    found = [cost.experts_ns(rows) for rows in ((1,), (7,), (30,), (1, 1), (3, 9, 2, 5), (16,) * 8)]
    for batch in BATCHES:
        found += [cost.front_ns(0, batch), cost.front_ns(2, batch), cost.tail_ns(batch)]
    return [*found, cost.readback_ns(8), cost.readback_ns(320)]


def test_without_noise_every_price_is_recovered() -> None:
    cost = known_cost()
    found = measure(Subject(cost.shape), SimBench(cost), 60, most_rounds=11)
    again = OperationCost(cost.hardware, cost.shape, found.times)
    for one, other in zip(predictions(cost), predictions(again), strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    assert again.landing_ns == pytest.approx(cost.landing_ns, abs=2000)
    assert again.fetch_ns(0) == pytest.approx(15_000, abs=2000)
    assert all(residual.error_p90 < 1e-3 for residual in found.times.residuals.values())


def test_with_noise_and_outliers_prices_are_near_and_the_stated_error_is_true() -> None:
    cost = known_cost()
    found = measure(Subject(cost.shape), SimBench(cost, noise=0.05), 60, most_rounds=18)
    again = OperationCost(cost.hardware, cost.shape, found.times)
    errors = [
        abs(other / one - 1)
        for one, other in zip(predictions(cost), predictions(again), strict=True)
    ]
    assert max(errors) < 0.12
    assert again.landing_ns == pytest.approx(cost.landing_ns, abs=8000)
    assert float(np.median(errors)) < 0.05
    for residual in found.times.residuals.values():
        assert 0.005 < residual.error_median < 0.1
        assert residual.fitted <= residual.held_out <= residual.fitted + 1


def test_samples_are_the_prices_themselves() -> None:
    cost = known_cost()
    samples = read_works(SimBench(cost).serve(DESIGN))
    for work, ns in samples.experts:
        later = (25_000 if work.landed else 0) + (15_000 if work.fresh else 0)
        # A copy that landed just before the lane was idle may delay a call by a part of that.
        part = range(1 if work.landed or not work.fresh else 25_000)
        assert ns - cost.experts_ns(work.tokens) - later in part
        assert len(work.tokens) == 1 or not work.fresh
        assert work.fresh or not work.landed
        assert not (work.fresh and work.copies)
    for layer, ns in samples.fronts:
        assert ns == cost.front_ns(layer.layer, layer.batch)
        assert layer.first == (layer.layer == 0)
    for readback, ns in samples.readbacks:
        assert ns == cost.readback_ns(readback.nbytes)
    for tail, ns in samples.tails:
        assert ns == cost.tail_ns(tail.batch) + cost.readback_ns(tail.nbytes)
    for nbytes, ns in samples.copies:
        assert ns == cost.copy_ns("h2d", nbytes)
    assert min(len(samples.experts), len(samples.copies), len(samples.readbacks)) > 20
    assert {work.landed for work, _ in samples.experts} == {True, False}
    assert {work.fresh for work, _ in samples.experts} == {True, False}


def test_late_wake_ups_of_an_emulated_link_count_once() -> None:
    """Two copies back to back, the news of each 5 us late: the link itself was never late."""
    from moesim.hardware import ops
    from moesim.hardware.ops import Experts, Front

    batch = BatchShape(1, 1, 1, 1, 1)
    link = Link(10, 10**9, 10**9)  # 110 ns for 100 bytes

    class Late:
        def ready_ns(self) -> int:
            return 150

    def done(lane: str, what: Any, start: int, finish: int) -> Issued:
        work = Work(lane, what)
        work.start_ns, work.finish_ns = start, finish
        return Issued(0, work, "", 0)

    def op(what: Any, start: int, finish: int) -> Issued:
        return done("gpu", what, start, finish)

    def copy(key: int, start: int, finish: int) -> Issued:
        record = done("h2d", ops.Copy(key, 100), start, finish)
        record.work.job = Late()
        return record

    records = [
        op(Front(0, batch), 0, 100),
        done("d2h", ops.Readback(8), 100, 120),
        copy(1, 160, 275),  # due at 260, since the link was free from 150 on
        op(Experts(0, (1,), (1,)), 280, 300),
        copy(2, 275, 385),  # due at 370, whenever it began
        op(Experts(0, (2,), (1,)), 390, 400),
    ]
    samples = read_works(records, link=link, skip_steps=0)
    assert samples.readbacks == [(Readback(8, 2), 50)]
    assert [ns for _, ns in samples.experts] == [300 - 260, 400 - 370]
    assert [ns for _, ns in samples.copies] == [110, 110]


def test_outliers_hardly_move_a_fit() -> None:
    rng = np.random.default_rng(3)
    points = []
    for number in range(200):
        x = rng.uniform(1, 50)
        wrong = 20.0 if number % 8 == 0 else 1.0
        points.append(Point(x, (100 + 7 * x) * rng.lognormal(0, 0.02) * wrong, 1))
    base, slope = robust(points, lambda x: (1, x))
    assert base == pytest.approx(100, rel=0.1)
    assert slope == pytest.approx(7, rel=0.05)


def test_skewed_durations_are_fitted_by_their_median() -> None:
    """A run's time is a median too, so rare long durations must not count."""
    rng = np.random.default_rng(0)
    slow = rng.random(4000) < 0.25
    samples = [(n % 20, 100.0 * (1.4 if slow[n] else 1)) for n in range(4000)]
    made = fit(pool(samples), lambda work: (1.0,))
    assert made.coefficients == pytest.approx([100], rel=1e-6)
    assert made.residual.bias == pytest.approx(0, abs=1e-6)


def test_delays_that_most_steps_have_are_in_the_scale_and_rare_ones_are_not() -> None:
    """Of ten fronts of each step one takes twice as long, and one whole step in four ten times."""
    samples = Samples()
    for step in range(12):
        for number in range(10):
            usual = 1000 if number == step % 10 else 500
            layer = Layer(1, BATCHES[0], first=False)
            samples.fronts.append((layer, usual * (10 if step % 4 == 0 else 1)))
        samples.steps.append(samples.counts())
    predict = dict.fromkeys(KINDS, lambda _: 500.0)
    assert step_factor(samples, predict) == pytest.approx(1.1)
    samples.steps = samples.steps[:2]
    assert step_factor(samples, predict) == 1.0


def test_a_scale_multiplies_every_duration_and_no_link() -> None:
    cost = known_cost(copy_factor=1.25)
    twice = OperationCost(cost.hardware, cost.shape, scaled(cost.times, 2.0))
    for one, other in zip(predictions(cost), predictions(twice), strict=True):
        assert other == pytest.approx(2 * one, abs=1)
    assert (twice.landing_ns, twice.fetch_ns(3)) == (50_000, 30_000)
    assert twice.copy_ns("h2d", 10**6) == cost.copy_ns("h2d", 10**6)


def test_a_part_that_never_varies_is_no_slope() -> None:
    """If all steps had one token, a layer of 24 takes the same, not 24 times as long."""
    points = [Point((1, tokens), 500.0 + tokens, 1) for tokens in (7,) * 6]
    assert robust(points, lambda work: work) == pytest.approx([507, 0])
    # Experts are the first part of a call, so a call takes no time of its own then.
    same = [Point((8, 1), 800.0, 1)] * 4
    assert robust(same, lambda work: work) == pytest.approx([100, 0])
    varied = [Point((n, 1), 30.0 + 100 * n, 1) for n in (1, 3, 8)]
    assert robust(varied, lambda work: work) == pytest.approx([100, 30])


def test_what_copies_add_to_readbacks_and_fronts_is_paid_in_the_last_call_of_their_event() -> None:
    cost = known_cost(fetch={})
    bench, samples = SimBench(cost), Samples()
    for slots in (32, 24, 9):  # else no event is without copies
        samples.add(read_works(bench.serve(replace(DESIGN, slots=slots))))
    samples.readbacks = [
        (work, ns + 3000 * bool(work.copies) + 400 * work.copies + 100 * work.before)
        for work, ns in samples.readbacks
    ]
    samples.fronts = [
        (work, ns + 2000 * bool(work.copies) + 700 * work.copies) for work, ns in samples.fronts
    ]
    samples.steps = []
    fetch = fit_times(cost.shape, samples).fetch
    assert fetch.event_ns == pytest.approx(5000, rel=0.1)
    assert fetch.copy_ns == pytest.approx(1200, rel=0.1)
    again = known_cost(fetch={"call_ns": 10, "event_ns": 5000, "copy_ns": 1200})
    assert [again.fetch_ns(copied) for copied in (0, 1, 4)] == [10, 6210, 9810]
    resident, fresh = Experts(1, (8,), (3,)), Experts(1, (8,), (3,), True, 4)
    assert again.compute_ns(fresh) - again.compute_ns(resident) == 9810


def test_at_most_half_of_the_points_are_fitted_over_the_whole_range() -> None:
    for number in range(2, 40):
        points = [Point(i, float(i * i + 1), 1) for i in range(number)]
        fitted, held_out = split(points, seed=number)
        assert len(fitted) == number // 2
        assert {p.work for p in fitted} | {p.work for p in held_out} == set(range(number))
        assert not {p.work for p in fitted} & {p.work for p in held_out}
        assert min(p.work for p in fitted) <= 1
        assert max(p.work for p in fitted) >= number - 3
    with pytest.raises(UsageError, match="1 measured point is not enough"):
        split([Point(0, 1.0, 1)])


def test_samples_of_one_and_the_same_work_are_fitted_and_checked_too() -> None:
    first, second = pool([("ids", 10.0), ("ids", 30.0), ("ids", 12.0), ("ids", 34.0)])
    assert (first.duration_ns, second.duration_ns) == (11.0, 32.0)
    assert len(pool([("ids", 10.0)])) == 1
    made = fit(pool([("ids", 10.0)] * 8), lambda work: [1.0])
    assert made.coefficients == (10.0,)
    assert (made.residual.fitted, made.residual.held_out) == (1, 1)


def test_a_duration_of_nothing_is_a_large_error_and_no_failure() -> None:
    """What another process took may be as long as a step's known parts: nothing is left then."""
    points = [Point(n, duration, 1) for n, duration in enumerate([1.0, 1e7] * 4, 1)]
    for seed in range(8):
        residual = fit(points, lambda n: (1.0,), seed=seed).residual
        assert residual.error_p90 <= MOST_RATIO
    assert verify(points[:1], lambda n: 1e8, 1).error_median == MOST_RATIO
    assert verify(points[:1], lambda n: 1e8, 1).bias == MOST_RATIO


def test_what_is_held_out_is_not_fitted() -> None:
    rng = np.random.default_rng(1)
    durations = [(10.0 + i) * float(rng.lognormal(0, 0.08)) for i in range(41)]
    points = [Point(i, duration, 1) for i, duration in enumerate(durations)]

    def parts(work: Any) -> tuple[float, ...]:
        return 1, work

    fitted, held_out = split(points)
    made = fit(points, parts)
    base, slope = robust(fitted, parts)
    assert made.coefficients == pytest.approx((base, slope))
    errors = [abs((base + slope * p.work) / p.duration_ns - 1) for p in held_out]
    assert (made.residual.fitted, made.residual.held_out) == (20, 21)
    assert made.residual.error_median == pytest.approx(float(np.median(errors)))


def test_repeats_become_one_point_with_their_median() -> None:
    points = pool([("a", 5.0), ("b", 1.0), ("a", 1000.0), ("a", 6.0)])
    assert points == [Point("a", 6.0, 3), Point("b", 1.0, 1)]


def test_designs_cover_batches_and_residencies_within_the_limits() -> None:
    shape = tiny_shape()
    made = list(islice(designs(shape, LIMITS), 36))
    assert {design.sequences for design in made} == {1, 2, 4, 8, 16}
    met = {(design.sequences, design.slots) for design in made}
    assert len(met) == 5 * 3
    assert {slots for _, slots in met} == {32, 16, 4}
    for design in made:
        assert design.sequences <= design.token_budget <= LIMITS.tokens
        assert max(map(sum, zip(design.prompts, design.outputs, strict=True))) <= LIMITS.context
        plan = design_plan(design, Subject(shape))
        assert len(plan.trace.expert_ids) == design.rows
        assert sum(plan.slots) == design.slots
    assert list(islice(designs(shape, LIMITS), 36)) == made
    few = list(islice(designs(shape, replace(LIMITS, slots=3)), 9))
    assert max(design.slots for design in few) == 3


def test_every_design_has_prefills_after_its_first_step_also_when_it_is_shortened() -> None:
    """The first step of a run counts nowhere, so a single request would never show its prefill."""
    for limits in (LIMITS, replace(LIMITS, sequences=1)):
        for design in islice(designs(tiny_shape(), limits), 12):
            short = design.shortened(1, 1)
            for each in (design, short):
                assert len(each.prompts) >= max(2, each.sequences)
                assert min(each.prompts) >= min(4, *design.prompts)
            assert short.rows <= design.rows
            assert short.outputs == design.outputs[: len(short.outputs)]
            assert design.shortened(design.rows, 1) == design.shortened(1, design.steps) == design


def test_designs_are_shortened_to_the_pace_of_the_last_one_and_not_below() -> None:
    """A simulated machine takes real time too, but its pace is that of its own clock."""
    cost = known_cost()
    plain = list(islice(designs(cost.shape, LIMITS), 4))[1:]
    for budget_s, longest in ((60.0, None), (1e-3, 8)):
        bench = SimBench(cost)
        measure(Subject(cost.shape), bench, budget_s, most_rounds=1)
        warm_up, first = bench.served
        assert len(warm_up.prompts) == 2
        assert first == plain[0] if longest is None else len(first.prompts) == longest


def test_the_budget_of_time_is_kept_and_one_that_is_too_short_is_reported() -> None:
    cost = known_cost()
    bench = SimBench(cost, noise=0.3)
    found = measure(Subject(cost.shape), bench, 0.01)
    assert found.rounds == 1
    assert not found.narrow
    assert math.isfinite(found.times.residuals["front"].error_p90)
    empty = read_works([])
    with pytest.raises(UsageError, match="too few experts, fronts, readbacks, tails"):
        fit_times(cost.shape, empty)
