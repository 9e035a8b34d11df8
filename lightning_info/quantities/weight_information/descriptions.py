"""Meanings of the tags of the information in the weights."""

from lightning_info.reporting.description import Description

DESCRIPTIONS = {
    "weight_info/kl_precision": Description(
        "The part of the information in the weights that comes from their precision: how exactly the task needs them, "
        "beyond the prior",
        "nats",
        "the task needs the weights more exactly",
        "the task tolerates more noise in the weights",
        "It depends on the prior's width (lambda) and on beta, both of which are logged.",
    ),
    "weight_info/kl_displacement": Description(
        "The part of the information in the weights that comes from their distance to the prior's mean",
        "nats",
        "the weights have moved further from where the prior is centred",
        "the weights have come closer to where the prior is centred",
        "With a narrow prior it outweighs everything else.",
    ),
    "weight_info/kl": Description(
        "KL(Q|P), the information in the weights: kl_precision and kl_displacement together",
        "nats",
        "the weights hold more or moved away from the prior",
        "the weights hold less",
        "Look at its two parts: the displacement is often nearly all of it.",
    ),
    "weight_info/log_det": Description(
        "log det(N F + beta/lambda²): logarithm of the volume of weights that do equally well, up to sign and constant",
        "nats",
        "fewer weights do equally well",
        "more weights do equally well",
        "Only its changes mean something: a constant of the number of weights is in it.",
    ),
    "weight_info/trace": Description(
        "Trace of the Fisher information, over the samples of its spectrum",
        "nats/weight²",
        "predictions depend more on single weights",
        "predictions depend less on single weights",
    ),
    "weight_info/top_eigenvalue": Description(
        "Largest eigenvalue of the Fisher information",
        "nats/weight²",
        "predictions are more sensitive along the most sensitive direction",
        "predictions are less sensitive along the most sensitive direction",
    ),
    "weight_info/effective_rank": Description(
        "Number of directions in which the predictions are sensitive: the exponential of the spectrum's entropy",
        "",
        "the sensitivity spreads over more directions",
        "the sensitivity gathers in fewer directions",
        "At most the number of samples of the spectrum times the number of outputs.",
    ),
    "weight_info/effective_dimension": Description(
        "Number of directions in the weights that the data fix against the prior: the sum of h/(h + c) over the "
        "eigenvalues h of N F, with c = beta/lambda²",
        "",
        "the data fix more directions",
        "the data fix fewer directions",
        "It depends on c; at most the number of samples of the spectrum times the number of outputs.",
    ),
    "weight_info/beta": Description("Level of the noise: the weight of the information in the Lagrangian"),
    "weight_info/lambda": Description("Standard deviation of the prior of the weights"),
    "weight_info/loss": Description(
        "Mean loss of a reference sample without noise", "nats", "the fit is worse", "the fit is better"
    ),
    "weight_info/expected_loss": Description(
        "Mean loss of a reference sample under the weight noise, as measured",
        "nats",
        "the noise that the curvature allows costs more",
        "the noise that the curvature allows costs less",
    ),
    "weight_info/predicted_loss": Description(
        "Mean loss under the weight noise as the quadratic approximation predicts it",
        "nats",
        caution="Where it differs from expected_loss, the approximation behind the KL fails.",
    ),
    "weight_info/complexity": Description(
        "C_beta: expected loss of all training samples plus beta times the information in the weights",
        "nats",
        "fit and weights together take a longer description",
        "fit and weights together take a shorter description",
    ),
    "weight_info/prequential": Description(
        "Prequential code of the labels: the sum, over the first epoch, of -log p of each label before the network was "
        "trained on it",
        "nats",
        "the labels are harder to predict from those before them",
        "the network learns the labels from fewer of them",
        "It grows through the first epoch and ends there: later losses are of labels that were trained on, no code.",
    ),
    "weight_info/prequential_excess": Description(
        "Prequential code minus the loss of the same number of samples at the end of fit",
        "nats",
        "the network took up more on the way to its final loss",
        "the network took up less on the way to its final loss",
        "The final loss is that of the reference samples in eval mode.",
    ),
    "weight_info/temperature": Description(
        "Temperature of SGD from learning rate, momentum and batch size, for gradient noise of unit variance; with a "
        "GradientNoiseCallback before this callback, of the noise that it measured",
        caution="Without it: the noise of real gradients has another variance.",
    ),
    "weight_info/free_energy": Description(
        "Loss plus half the temperature (weight_info/temperature) times log det(F + I)",
        "nats",
        "training has moved to a worse or sharper place",
        "training has moved to a better or flatter place",
    ),
    "weight_info/pac_bayes_bound": Description(
        "PAC-Bayes bound of the error on new samples, of a network whose weights are drawn from Q for each prediction",
        "",
        "less is certain about new samples",
        "more is certain about new samples",
        "It holds with probability 1 - delta at one point, and says nothing of the network with the mean weights.",
    ),
    "weight_info/gibbs_error": Description(
        "Error on the training set, of a network whose weights are drawn from Q for each prediction",
        "",
        "the noise of Q costs more errors",
        "the noise of Q costs fewer errors",
        "Q is the one chosen for the bound; the noise of expected_loss is another.",
    ),
    "weight_info/test_bound": Description(
        "Bound of the error of the network itself, from its errors on the validation data alone",
        "",
        "the network errs more on the validation data",
        "the network errs less on the validation data",
        "It holds with probability 1 - delta at one point; not if the network was chosen by these data.",
    ),
    "weight_info/rate_distortion": Description(
        "Loss under weight noise against the information that the weights keep, measured and predicted, over epochs",
        caution="Where measured and predicted loss differ, the information is not to be interpreted.",
    ),
    "weight_info/log10_eigenvalues": Description("Spectrum of the Fisher information, as logarithms to the base 10"),
}
