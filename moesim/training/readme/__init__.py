"""Read-ME's model side: a dense model becomes a mixture of experts with a separate router.

Cai et al., "Read-ME: Refactorizing LLMs as Router-Decoupled Mixture of Experts with System
Co-Design", NeurIPS 2024 (arXiv 2410.19123). Where the paper and its released code disagree, both
are implemented, named `paper` and `code`.

    ffn.py       the gated FFNs of a dense model, and access to their activations
    scores.py    how much each domain of text uses each channel
    masks.py     each domain's channels, and the channels that all domains share
    router.py    the router that reads token ids alone
    masked_experts.py    routers that choose one expert, and experts that are masks
    config.py, model.py  the refactored model, as a model of transformers
    distill.py   the expert that a token should take, computed from a dense model
    schedule.py  rounds of tuning: routers first, then experts
    tuning.py    the training loop, which resumes after a kill
    settings.py  the settings of a refactoring, and two sets of them
    pipeline.py  all steps in order: `moesim models readme`
"""
