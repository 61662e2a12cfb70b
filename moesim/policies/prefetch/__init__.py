"""Prefetch policies: which experts are copied before they are needed, one idea per file."""

from moesim.policies.prefetch.activation_matrix import ActivationMatrix
from moesim.policies.prefetch.all import AllExperts
from moesim.policies.prefetch.base import DepthOptions, Lessons, Prefetch, PrefetchContext, Prices
from moesim.policies.prefetch.dial import Dial
from moesim.policies.prefetch.gain import Gain
from moesim.policies.prefetch.layer_ahead import LayerAhead
from moesim.policies.prefetch.learned import Learned, LearnedOptions
from moesim.policies.prefetch.none import NoPrefetch
from moesim.policies.prefetch.oracle import Oracle
from moesim.policies.prefetch.popularity import Popularity
from moesim.policies.prefetch.predicted import Predicted
from moesim.policies.prefetch.previous_layer import PreviousLayer
from moesim.policies.prefetch.previous_token import PreviousToken
from moesim.policies.prefetch.stride import Stride
from moesim.policies.prefetch.trajectory import Trajectory

__all__ = [
    "ActivationMatrix",
    "AllExperts",
    "DepthOptions",
    "Dial",
    "Gain",
    "LayerAhead",
    "Learned",
    "LearnedOptions",
    "Lessons",
    "NoPrefetch",
    "Oracle",
    "Popularity",
    "Predicted",
    "Prefetch",
    "PrefetchContext",
    "PreviousLayer",
    "PreviousToken",
    "Prices",
    "Stride",
    "Trajectory",
]
