"""What to say of a batch that does not fall into samples."""

from __future__ import annotations

from typing import Any

from lightning_info.gradients.layout import GO_ON, Path, bare, rebuilt
from lightning_info.gradients.sample_objects import is_one_graph

DECLARE = (
    "split= with collate= (functions that split a batch into its samples and join them again), batch_axes= (the axis "
    "of the samples by tensor, for example batch_axes={'x': 1, 'table': None}), or reference=(x, y) with an adapter "
    "for such batches"
)
"""What says where the samples are."""


def why_not_cut(batch: Any, error: Exception) -> str:
    """Why a batch has no samples, and what to write.

    Args:
        batch: As the module takes it.
        error: What was raised when its samples were counted.
    """
    if batch is None:
        return (
            "there is no batch before the step where training_step takes dataloader_iter; give the samples to "
            "measure, reference=(x, y) or reference=dataset, with an adapter for them"
        )
    return one_graph(batch) or (
        f"{error}; a batch must hold tensors with an axis that counts the samples, or graphs. Otherwise say where the "
        f"samples are: {DECLARE}"
    )


def one_graph(batch: Any) -> str:
    """What is said of a batch that is one graph, of which nodes are classified; empty if it is not."""
    found: list[Any] = []

    def visit(path: Path, value: Any) -> Any:
        if is_one_graph(value):
            found.append(value)
            return value
        return GO_ON

    rebuilt(bare(batch), visit)
    if not found:
        return ""
    return (
        f"the batch is one graph of {found[0].num_nodes} nodes, which are no independent samples: what is predicted "
        f"for a node depends on its neighbours. The whole graph can be measured as one sample, of which F is the sum "
        f"over its nodes:\n\n"
        f"    def adapter(module, graph):\n"
        f"        kept = graph.train_mask\n"
        f"        return module(graph)[kept].T[None], graph.y[kept][None], 'categorical'  # (1, classes, nodes)\n\n"
        f"with split=lambda graph: [graph], collate=lambda graphs: graphs[0]"
    )
