"""Meanings of the tags of the gradient noise."""

from lightning_info.reporting.description import Description

UNIT = "loss²/weight²"

DESCRIPTIONS = {
    "gradient_noise/scale_low": Description(
        "Lower end of the 95 % interval of the gradient noise scale",
        "samples",
        "larger batches pay more",
        "smaller batches suffice; 0: not resolved",
        "It falls too where the same samples show it less well.",
    ),
    "gradient_noise/scale": Description(
        "Gradient noise scale tr Σ/|G|²: the batch size at which noise and signal of a gradient are of equal size",
        "samples",
        "gradients of single samples agree less, so larger batches pay",
        "gradients of single samples agree more, so smaller batches suffice",
        "Infinite where the mean gradient is not resolved: then only scale_low, the lower end, says something.",
    ),
    "gradient_noise/trace": Description(
        "Trace of the covariance of the training loss's gradients of single samples, tr Σ",
        UNIT,
        "gradients of single samples differ more",
        "gradients of single samples differ less, as they do once the data are fitted",
    ),
    "gradient_noise/squared_norm": Description(
        "Squared norm of the mean gradient, |G|², without the bias that noise gives it",
        UNIT,
        "the loss falls faster along its gradient",
        "the loss is nearer to a place where it is level",
        "It can be negative where noise hides it.",
    ),
    "gradient_noise/temperature": Description(
        "Temperature of SGD from the measured noise: learning rate times tr Σ/(2 batch size weights), with momentum",
        "loss",
        "the weights are shaken more",
        "the weights are shaken less",
        "One number for noise that differs between directions; it holds for small learning rates.",
    ),
    "gradient_noise/layers": Description(
        "Gradient noise scale of each module over training; grey where its mean gradient is not resolved"
    ),
    "gradient_noise_layers/*": Description(
        "Gradient noise scale of this module's own weights",
        "samples",
        "larger batches pay more for this module",
        "smaller batches suffice for this module",
        "It has no error; NaN where the mean gradient is not resolved.",
    ),
    "gradient_noise_trace_layers/*": Description(
        "Part of tr Σ that belongs to this module's own weights; the parts add up to the whole",
        UNIT,
        "gradients of single samples differ more in this module",
        "gradients of single samples differ less in this module",
    ),
}
