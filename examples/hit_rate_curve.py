"""How many expert slots does a trace need?

A curve replays the trace without any timing, so it takes no machine and no model.
"""

import moesim

curve = moesim.curve("traces/deep", ["lru", "lfu", "min"], capacities=[1, 2, 4, 6])
print(curve.attrs["routing"])

rates = curve.pivot(index="slots_per_layer", columns="policy", values="hit_rate")
print("slots   lru    lfu    min")
for slots, row in rates.iterrows():
    print(f"{slots:5} {row['lru']:6.1%} {row['lfu']:6.1%} {row['min']:6.1%}")

# `min` sees the future: no policy can hit more often at a size.
gap = rates["min"] - rates[["lru", "lfu"]].max(axis=1)
print(f"largest distance of the better policy from min: {gap.max():.1%}, with {gap.idxmax()} slots")
