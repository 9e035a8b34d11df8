"""Statements of sections 1 to 4 of Achille, Paolini & Soatto that no figure shows, and where each is tested."""

from __future__ import annotations

from typing import NamedTuple

ERRATA = "[errata](../errata.md), "


class Statement(NamedTuple):
    """A statement.

    Attributes:
        section: Section, theorem or equation.
        text: What the paper says.
        tested: Test or example, or why there is none.
    """

    section: str
    text: str
    tested: str


def by(path: str, name: str) -> str:
    """Return the name of a test."""
    return f"`tests/{path}.py::test_{name}`"


STATEMENTS = [
    Statement(
        "1, 3.1",
        "I(x;z) of a deterministic network is degenerate",
        "see [deterministic networks](../concepts/deterministic_networks.md); over a finite sample it is log N: "
        + by("functional/test_mixture", "above_the_ceiling_everything_reads_log_n"),
    ),
    Statement(
        "1.1",
        "the Information Lagrangian of the weights bounds the information bottleneck of the activations",
        "not tested: no inequality is stated; Proposition 3.2 is what there is of it, see there",
    ),
    Statement(
        "1.2",
        "the KL of a small change of the weights is a quadratic form of F",
        ERRATA
        + "½ is missing; "
        + by("functional/test_output_kl", "for_small_changes_it_is_half_the_quadratic_form_of_the_fisher_information"),
    ),
    Statement(
        "1.2, 2.3 (i)",
        "F depends on the inputs, not on the labels of the data",
        by("callbacks/test_weight_info", "without_targets_all_is_measured_but_the_loss"),
    ),
    Statement(
        "1.2, 2.3 (i)",
        "so all tasks with the same inputs share one F",
        "not tested, and true at equal weights only: training for another task leads to others",
    ),
    Statement(
        "1.2",
        "F is the covariance of the scores of labels from the model",
        by("functional/test_fisher", "fisher_trace_of_a_plain_module_equals_the_definition"),
    ),
    Statement(
        "1.2",
        "the gradient of a batch is that of the loss in expectation",
        f"{ERRATA}for the mean of the loss, not for its sum",
    ),
    Statement(
        "(1)",
        "SGD is a Langevin diffusion with non-isotropic noise",
        f"{ERRATA}sign of the noise; of which T: "
        + by("functional/test_free_energy", "the_temperature_is_that_of_torch_sgd_on_a_noisy_quadratic"),
    ),
    Statement(
        "2",
        "weights whose perturbation changes nothing hold no information",
        by("functional/test_weight_information", "ten_million_weights_without_curvature_cost_no_digits"),
    ),
    Statement(
        "2, 2.1",
        "the information is the KL of the Q that minimises loss + β KL",
        by("functional/test_weight_information", "the_covariance_minimises_the_lagrangian"),
    ),
    Statement(
        "2",
        "over β it traces a curve of accuracy against information",
        "measured and predicted by `WeightInfoCallback`, see [its page](../weight_info.md); "
        + by(
            "quantities/weight_information/test_noisy_loss",
            "of_a_quadratic_loss_the_rise_is_the_predicted_one_within_its_error_at_every_level",
        ),
    ),
    Statement(
        "2",
        "the coding length of typical networks dwarfs that of the labels, N log C",
        "not tested; `weight_info/kl` is in nats, to be compared with N log C",
    ),
    Statement(
        "2.2",
        "the PAC-Bayes bound",
        f"{ERRATA}for the mean of a bounded loss; Theorem 2.2 above; "
        + by("functional/test_pac_bayes", "a_posterior_chosen_by_the_data_fails_in_less_than_delta_of_all_runs"),
    ),
    Statement("(4)", "the same bound in expectation over data sets", "not tested; no callback uses it"),
    Statement(
        "2.3",
        "with the marginal of Q as prior the expected KL is I(w;D), and no prior gives less",
        by("functional/theory/test_shannon_information", "within_two_per_cent_of_a_linear_gaussian_model")
        + "; that no other prior gives less is not tested",
    ),
    Statement(
        "2.4",
        "the Hessian is F and a residual; H ≈ F once the samples are predicted correctly",
        f"Lemma 2.4 above; {ERRATA}it does not follow",
    ),
    Statement(
        "2.5, (8)",
        "covariance and KL of the best Gaussian Q",
        f"{ERRATA}half of β, half of k; "
        + by("functional/test_weight_information", "the_kl_is_that_of_torch_distributions"),
    ),
    Statement("2.6", "away from a minimum H has negative eigenvalues, F never has", "Lemma 2.4 above"),
    Statement(
        "2.7",
        "with an improper prior the KL diverges, differences of it do not",
        by("functional/test_weight_information", "an_infinite_lambda_has_no_kl_but_differences_of_log_determinants"),
    ),
    Statement(
        "2.3",
        "with the Fisher information the bound of Theorem 2.2 is likely vacuous",
        "Theorem 2.2 above, the criteria of 'post hoc'",
    ),
    Statement("2.3 (ii)", "SGD implicitly minimises the Fisher information", "figures 3 and 4, Proposition 2.8 above"),
    Statement(
        "2.8",
        "the escape time, which grows exponentially with the difference of free energies over T",
        f"Proposition 2.8 above; {ERRATA}Hessian at the saddle; "
        + by("examples/test_escape", "times_are_those_of_an_integral"),
    ),
    Statement(
        "2.3",
        "optimisation minimises a free energy L + T/2 log det F, not the loss",
        "Proposition 2.8 above for two wells; `weight_info/free_energy` shows it for a training; no test that it falls",
    ),
    Statement(
        "2.9",
        "I(w;D) from F and the Jacobian of the end point",
        ERRATA
        + "power of β; "
        + by("functional/test_stability", "it_tends_to_the_truth_from_below_as_the_noise_falls"),
    ),
    Statement(
        "2.3",
        "neither flatness nor stability alone explains generalisation",
        "not tested; that flatness depends on the scale of the weights: "
        "[scale of the weights](../concepts/scale.md), figure 4 above",
    ),
    Statement(
        "3.1, (9)",
        "effective information is what is left under the noise of the best Q",
        by("functional/test_effective_information", "linear_layer_is_near_its_exact_mixture"),
    ),
    Statement(
        "3.2 (i)",
        "F of the activations from that of the weights",
        f"{ERRATA}inverse of the wrong matrix, sign; "
        + by("functional/theory/test_activation_fisher", "the_fisher_is_the_curvature_of_the_kl"),
    ),
    Statement(
        "3.2 (ii), (10)",
        "effective information from F of the activations",
        f"{ERRATA}number of inputs, not of weights; "
        + by("functional/theory/test_activation_fisher", "equation_10_is_the_limit_of_small_noise"),
    ),
    Statement(
        "3.2",
        "less Fisher information in the weights is less effective information",
        "Proposition 3.2 above; for one network and F scaled down: "
        + by(
            "functional/theory/test_activation_fisher",
            "less_fisher_information_in_the_weights_is_less_in_the_activations",
        ),
    ),
    Statement(
        "3.1",
        "a smaller Lipschitz constant of the network also reduces it",
        "not tested apart from the weights: with the noise of a linear layer's bias it is a Gaussian channel, "
        + by("functional/theory/test_activation_fisher", "noise_on_the_biases_of_a_linear_layer_is_a_gaussian_channel"),
    ),
    Statement(
        "3",
        "z is maximally invariant if and only if I(x;z) is minimal among sufficient ones",
        "not tested: a statement of another paper on all representations",
    ),
    Statement(
        "3",
        "little information in the weights forces effective invariance",
        "Proposition 3.2 above; trained with and without nuisances: [nuisances](nuisances.md)",
    ),
    Statement(
        "4",
        "the Fisher information bounds the Shannon information, loosely",
        f"figure 3 above; {ERRATA}not by thousands of nats",
    ),
    Statement("2.3", "learning slows down where the Fisher information is large", "not tested"),
]
