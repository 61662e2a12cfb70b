"""What does routing that I have logged myself give?

Arrays are enough: the experts of each row, and how many rows each request has. Here they are drawn
at random, so the trace says that it is synthetic, and so does every result.
"""

import tempfile

import numpy as np

import moesim

ROWS, LAYERS, EXPERTS, TOP_K = 120, 8, 16, 2

rng = np.random.default_rng(0)
# Zipf-like popularity: expert e of each layer is wanted with a weight of 1 / (e + 1).
weights = 1 / np.arange(1, EXPERTS + 1)
scores = np.log(weights) + rng.gumbel(size=(ROWS, LAYERS, EXPERTS))
expert_ids = np.argsort(-scores, axis=2)[:, :, :TOP_K]  # [row, layer, k]

trace = moesim.Trace.from_arrays(
    expert_ids=expert_ids,
    seq_len=[40, 50, 30],  # rows of each request: prompt + output - 1
    prompt_tokens=[20, 30, 10],
    num_experts=EXPERTS,
    model="my-model",
    synthetic=True,
    expert_bytes=8 << 20,
)
print(trace)

curve = moesim.curve(trace, ["lru", "min"], capacities=[2, 4, 8], link="25GB/s")
for row in curve.to_dict("records"):
    bound_ms = row["bound_ns_per_token"] / 1e6
    print(
        f"{row['policy']} with {row['slots_per_layer']} slots: {row['hit_rate']:.1%} hits, "
        f"at least {bound_ms:.2f} ms a token over the link"
    )

with tempfile.TemporaryDirectory() as folder:
    saved = trace.save(f"{folder}/mine")  # scenarios name this folder: `trace: mine`
    print("saved and read back:", np.array_equal(saved.expert_ids[:], expert_ids))
