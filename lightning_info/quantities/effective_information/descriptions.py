"""Meanings of the tags of effective information."""

from lightning_info.reporting.description import Description

DESCRIPTIONS = {
    "effective_info_decoder/I_TY/*": Description(
        "I(T;Y): the information about the label that decoders find in the layer's activations T without noise, a "
        "lower bound without bins, at most the entropy of the labels",
        "nats",
        "the label can be read off better (linearly)",
        "the label can be read off less well",
        "Information that only a curved decoder sees, or more samples would show, is not in it.",
    ),
    "effective_info_decoder_stderr/*": Description(
        "Standard error of effective_info_decoder, over samples and folds", "nats"
    ),
    "effective_info*/I_XZ/*": Description(
        "I(X;Z): lower bound of the information about the input in the layer's activations Z, when the weights carry "
        "the noise that the task tolerates",
        "nats",
        "more samples are told apart in spite of the noise",
        "fewer samples are told apart under the noise",
        "A bound: behind a nonlinearity it can be far below the truth. It depends on the distortion, which the summary "
        "names.",
    ),
    "effective_info*/I_ZY/*": Description(
        "I(Z;Y): lower bound of the information about the label in the layer's noisy activations Z, at most the "
        "entropy of the labels",
        "nats",
        "classes are told apart in spite of the noise",
        "classes are told apart less under the noise",
    ),
    "effective_info*/beta": Description(
        "Noise level beta at which the loss rises by the chosen distortion",
        "",
        "the weights tolerate more noise for their curvature",
        "the weights tolerate less noise for their curvature",
    ),
    "effective_info*/loss": Description("Mean loss of a sample without noise", "nats"),
    "effective_info*/noisy_loss": Description("Mean loss of a sample under the weight noise", "nats"),
    "effective_info*/plane": Description(
        "Plane of effective information: each layer's path over training under weight noise, without bins",
    ),
    "effective_info*/crossing": Description(
        "Largest amount by which a layer's bound of I(X;Z) lies below that of a later layer",
        "nats",
        "the bounds contradict one another more: a layer cannot hold less than one behind it, so its bound is loose",
        "the bounds of the layers agree better",
    ),
}
