"""Meanings of the tags of the Fisher trace."""

from lightning_info.reporting.description import Description

UNIT = "nats/weight²"

DESCRIPTIONS = {
    "fisher/trace": Description(
        "Trace of the Fisher information of the weights, tr F: how strongly the predictions react to small random "
        "changes of the weights",
        UNIT,
        "predictions depend more on the exact values of weights",
        "predictions depend less on exact weights, in a flatter place",
        "Rescaling the weights changes it, so compare a net with itself over training, not two nets. With BatchNorm on "
        "running statistics its first points show their warm-up.",
    ),
    "fisher/scale_invariant_trace": Description(
        "Fisher trace in which each tensor of weights counts by its squared norm: it stays where layers are rescaled "
        "without a change of what the net computes, as tr F does not",
        "nats",
        "predictions depend more on relative weight changes",
        "predictions depend less on relative weight changes",
        "A fall of tr F without a fall of this one is a matter of larger weights. Rescaling single units moves it too.",
    ),
    "fisher/rao_norm": Description(
        "wᵀFw, the squared Fisher-Rao norm of the weights: how strongly predictions react if all weights grow by one "
        "factor",
        "nats",
        "predictions are more confident or more sensitive to the scale of the weights",
        "predictions depend less on the scale of the weights",
    ),
    "fisher/coverage": Description(
        "Share of the trainable weights whose gradient was computed exactly for every sample; 1 unless it is said"
    ),
    "fisher/empirical_trace": Description(
        "Mean squared gradient norm of the loss at the labels of the data (the empirical Fisher trace)",
        UNIT,
        "gradients of single samples grow",
        "gradients of single samples vanish, as they do once the data are fitted",
        "It is not tr F: it goes to zero with the training loss, whatever the curvature.",
    ),
    "fisher/exact_trace": Description(
        "The Fisher trace with all outputs instead of random ones, on the samples that are measured",
        UNIT,
        "as for fisher/trace",
        "as for fisher/trace",
    ),
    "fisher/hessian_trace": Description(
        "Trace of the Hessian of the loss",
        UNIT,
        "the loss is more curved around the weights",
        "the loss is flatter around the weights",
        "It can be negative away from a minimum; near one it approaches tr F.",
    ),
    "fisher/loss_gradient_trace": Description(
        "Mean squared gradient norm of the losses of single samples; no likelihood is known, so it is not tr F",
        "loss²/weight²",
        "gradients of single samples grow",
        "gradients of single samples shrink",
    ),
    "fisher/layers": Description(
        "Fisher trace by module over training: where in the network the predictions are sensitive"
    ),
    "fisher_layers/*": Description(
        "Part of the Fisher trace that belongs to this module's own weights; the parts add up to the whole",
        UNIT,
        "predictions depend more on this module's weights",
        "predictions depend less on this module's weights",
    ),
}
