"""Does OLMoE run on a card with 12 GB, how fast, and with which flags?

No trace is needed. Speeds are predictions, each with its interval.
"""

import moesim

advice = moesim.advise("olmoe-1b-7b", gpu="rtx-3060-12gb", formats=["Q4_K_M", "Q8_0"])
print(advice)

print("\nchoices that no other beats:")
for row in advice.frame.to_dict("records"):
    print(
        f"{row['format']:7} {row['bits']:.1f} bits a weight, KV in {row['kv']}: "
        f"{row['decode_tok_s']:.0f} ({row['low']:.0f} to {row['high']:.0f}) tokens/s"
    )
for score in advice.grounds.scores:
    print(score)
