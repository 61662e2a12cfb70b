"""Read-ME's model side: a dense model becomes a mixture of experts with a router of its own.

Cai et al., "Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System
Co-Design", NeurIPS 2024 (arXiv 2410.19123). Where the paper and its released code disagree, both
are here, named `paper` and `code`.

    ffn.py       the gated FFNs of a dense model, and what runs through their channels
    scores.py    how much each domain of text uses each channel
    masks.py     each domain's share of the channels, and what all of them share
    experts.py   routers that choose one expert, and experts that are masks
    router.py    the router that reads token ids alone
    config.py, model.py  the refactored model, as transformers sees it
    distill.py   which expert a token should take, as the dense model shows it
    schedule.py  rounds of tuning, each of them first routers, then experts
    tuning.py    the loop, which goes on where it was killed
    settings.py  what a refactoring is made of, and two sets of it
    pipeline.py  everything in order: `moesim models readme`
"""
