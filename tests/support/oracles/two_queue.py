"""Plain versions of a layer event divided between GPU, CPU and link: task by task, by hand."""

from __future__ import annotations

from typing import Any

from moesim.policies.placement.base import ARRIVING

Loads = dict[int, int]
Absent = dict[int, str]


def greedy(loads: Loads, absent: Absent, prices: Any) -> list[int]:
    """Return the copied keys in order: HybriMoE's rule, task by task on three resources."""
    arriving = sorted(key for key in loads if absent.get(key) == ARRIVING)
    waiting = [key for key in loads if absent.get(key, ARRIVING) != ARRIVING]
    free = {"cpu": prices.cpu_call_ns, "link": sum(map(prices.copy_ns, arriving))}
    copied = []
    while waiting:
        light = max(waiting, key=lambda key: (-loads[key], key))
        heavy = min(waiting, key=lambda key: (-loads[key], key))
        cpu_task = prices.cpu_ns(light, loads[light]) - prices.cpu_call_ns
        computed = free["cpu"] + prices.read_ns(light) + cpu_task
        landed = free["link"] + prices.read_ns(heavy) + prices.copy_ns(heavy)
        if landed < computed:
            copied.append(heavy)
            waiting.remove(heavy)
            free["link"] = landed
        else:
            waiting.remove(light)
            free["cpu"] = computed
    return copied


def makespan(loads: Loads, absent: Absent, prices: Any, copied: list[int]) -> int:
    """Return when CPU and GPU are done. The GPU takes the first landed of the tasks left."""
    arriving = sorted(key for key in loads if absent.get(key) == ARRIVING)
    cpu = [key for key in absent if key not in (*arriving, *copied)]
    reads = sum(map(prices.read_ns, cpu))
    each = [prices.cpu_ns(key, loads[key]) - prices.cpu_call_ns for key in cpu]
    cpu_ns = prices.cpu_call_ns + sum(each) + reads if cpu else 0
    landed, link = {}, 0
    for key in (*arriving, *copied):
        link += prices.copy_ns(key) + (prices.read_ns(key) if key in copied else 0)
        landed[key] = link
    residents = [prices.gpu_row * rows for key, rows in loads.items() if key not in absent]
    now = prices.gpu_call_ns + sum(residents) if residents else 0
    while landed:
        key = min(landed, key=landed.__getitem__)
        now = max(now, landed.pop(key)) + prices.gpu_ns(key, loads[key])
    return max(cpu_ns, now)


def queue_of(loads: Loads, absent: Absent) -> list[int]:
    """Return the experts to divide, those with most rows first."""
    waiting = [key for key, place in absent.items() if place != ARRIVING]
    return sorted(waiting, key=lambda key: (-loads[key], key))


def best_plan(loads: Loads, absent: Absent, prices: Any) -> list[int]:
    """Return the copied keys of the plan that ends first; without a CPU, all are copied."""
    plans = [greedy(loads, absent, prices), [], queue_of(loads, absent)]
    if not prices.has_cpu:
        plans = plans[2:]
    return min(plans, key=lambda plan: makespan(loads, absent, prices, plan))
