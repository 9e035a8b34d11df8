"""One file a layer type. Importing anything of this folder enters all of them in the registry, :mod:`~.layers.base`.

To teach the engines a new layer type, write its file and import it here.
"""

from lightning_info.gradients.layers import (
    attention,
    convolution,
    embedding,
    linear,
    normalisation,
    recurrent,
)

__all__ = ["attention", "convolution", "embedding", "linear", "normalisation", "recurrent"]
