"""What moesim must know of an NVIDIA GPU, measured in ten minutes; `README.md` says how."""
