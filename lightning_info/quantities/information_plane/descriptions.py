"""Meanings of the tags of the information plane."""

from dataclasses import replace

from lightning_info.reporting.description import Description

CAUTION = (
    "It depends on the bins (or the noise) of the estimator: compare ranges before a fall is called compression, and "
    "leave out layers at the ceiling, where every sample has its own code."
)

LIVE = (
    "With bins over the global range, the bins of a point are those of the range so far, so early points have "
    "finer bins; the curve of the same name with _final, written at the end, has one range."
)

_INPUT = Description(
    "I(X;T): information that the layer's binned or noisy activations T keep of the input, at most the logarithm of "
    "the number of samples",
    "bits",
    "more samples are told apart",
    "fewer samples are told apart (compression only if every range agrees)",
    CAUTION,
)
_LABEL = Description(
    "I(T;Y): information about the label in the layer's binned or noisy activations T, at most the entropy of "
    "the labels",
    "bits",
    "classes are told apart better, or more samples have a bin of their own",
    "classes are told apart less",
    "Part of it comes from the number of samples alone: info_plane_decoder/I_TY is free of that, and with "
    "label_information='binned' info_plane_shuffled/I_TY shows it.",
)

_DECODER = Description(
    "I(T;Y): the information about the label that decoders find in the layer's activations, a lower bound without "
    "bins, at most the entropy of the labels",
    "bits",
    "the label can be read off better (linearly)",
    "the label can be read off less well",
    "The bound is what linear decoders learn from the reference samples: information that only a curved decoder sees, "
    "or more samples would show, is not in it.",
)

DESCRIPTIONS = {
    "info_plane_decoder/I_TY/*": _DECODER,
    "info_plane_decoder/I_TN_*": Description(
        "I(T;N): the information about a nuisance that decoders find in the layer's activations, a lower bound",
        "bits",
        "the nuisance can be read off better (linearly)",
        "the layer becomes invariant to the nuisance, as far as linear decoders see",
        "A low value is invariance only as far as linear decoders of this many samples can tell.",
    ),
    "info_plane_decoder_stderr/*": Description("Standard error of info_plane_decoder, over samples and folds", "bits"),
    "info_plane_decoder/plane_*": Description(
        "Information of the layers about the label upwards, and about a nuisance to the right, by decoders; the colour "
        "is the epoch"
    ),
    "info_plane_shuffled/I_TY/*": Description(
        "I(T;Y) after shuffling the labels: the part of it that comes from the number of samples and says nothing",
        "bits",
        "more of the layer's I(T;Y) is memorised bins",
        "less of the layer's I(T;Y) is memorised bins",
    ),
    "info_plane*_final/I_XT*/*": _INPUT,
    "info_plane*_final/I_TY*/*": _LABEL,
    "info_plane*/I_XT*/*": replace(_INPUT, caution=f"{LIVE} {CAUTION}"),
    "info_plane*/I_TY*/*": replace(_LABEL, caution=f"{LIVE} {_LABEL.caution}"),
    "info_plane*/plane": Description(
        "Information plane: each layer's path over training, input to the right and label upwards; colour is the epoch",
        caution=CAUTION,
    ),
    "activations/*": Description("Activations of the layer, or their channel means, at the last point"),
}
