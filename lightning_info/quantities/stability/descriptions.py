"""Meanings of the tags of stability."""

from lightning_info.reporting.description import Description

DESCRIPTIONS = {
    "stability/twin_overhead": Description("Share of the run's time that the training of the twins has taken so far"),
    "stability/paths": Description(
        "Paths of the run and its twin in the plane of where they start and end, over the loss of the reference samples"
    ),
    "stability*/param_distance": Description(
        "Distance between the weights of the run and of its twin, which trains with one sample replaced",
        "",
        "the one sample has moved the weights further",
        "the two trainings have come closer again",
        "Weights can differ without any difference in the predictions: see output_kl.",
    ),
    "stability*/relative_distance": Description(
        "Distance between the weights of run and twin, as a share of the way from the initial weights",
        "",
        "the one sample accounts for more of where training has gone",
        "the one sample accounts for less of where training has gone",
    ),
    "stability*/fisher_distance": Description(
        "Half of delta' F delta: the output KL between run and twin to second order",
        "nats/sample",
        "predictions of run and twin differ more",
        "predictions of run and twin differ less",
        "An approximation: compare with output_kl.",
    ),
    "stability*/output_kl": Description(
        "Mean KL divergence of the twin's predictions from those of the run, over the reference samples",
        "nats/sample",
        "the one sample has changed the predictions more",
        "the one sample has changed the predictions less",
    ),
    "stability*/kl_ratio": Description(
        "output_kl divided by fisher_distance", "", caution="Far from 1, the quadratic approximation fails."
    ),
    "stability*/loss_gap": Description(
        "Loss of the replaced sample in the twin, which never saw it, minus its loss in the run",
        "nats",
        "the run has learned more of this sample by heart",
        "the run fits this sample less by heart",
    ),
    "stability*/unique_information": Description(
        "Unique information: what the weights hold about the replaced sample and no other",
        "nats",
        "the weights hold more of this sample alone",
        "the weights hold less of this sample alone",
        "It holds for one sample, by the quadratic approximation, and depends on beta.",
    ),
}
