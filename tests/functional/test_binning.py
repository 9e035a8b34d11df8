from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import mutual_info_score

from lightning_info.functional import (
    bin_codes,
    bin_targets,
    binned_information,
    binning,
    code_information,
    exact_codes,
    shuffled_information,
    subset_information,
    unit_entropies,
)
from lightning_info.functional.codes import row_hashes

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def plain_bins(t, bins, low, high):
    """The bin of every activation, looked up among the edges."""
    edges = low + (high - low) * np.arange(bins + 1) / bins
    return np.clip(np.searchsorted(edges, t.double().numpy(), side="right") - 1, 0, bins - 1)


def plain_codes(indices):
    """A number for every row that is there, by comparing rows."""
    return np.unique(indices, axis=0, return_inverse=True)[1].ravel()


def ends(t, bin_range):
    named = {"fixed": (-1.0, 1.0), "adaptive": (t.double().min().item(), t.double().max().item())}
    return named.get(bin_range, bin_range)


def partition(codes):
    """Codes renumbered by their first occurrence: equal for codes that split the samples alike."""
    _, first, inverse = np.unique(np.asarray(codes), return_index=True, return_inverse=True)
    return first[inverse].tolist()


def activations(n, d, dtype=torch.float32):
    """Some rows twice, values beyond (-1, 1)."""
    return torch.randn(n, d).to(dtype)[torch.randint(0, max(1, 2 * n // 3), (n,))]


def patterns(bits=12):
    """All inputs of that many bits."""
    return torch.arange(2**bits).unsqueeze(1).bitwise_right_shift(torch.arange(bits)).bitwise_and(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bin_range", ["fixed", "adaptive", (-0.3, 2.0)])
def test_information_is_that_of_scikit_learn_on_codes_of_numpy(dtype, bin_range):
    generator = np.random.default_rng(0)
    for _ in range(25):
        n, d, bins, classes = (int(generator.integers(*span)) for span in ((1, 400), (1, 30), (1, 60), (1, 12)))
        t, y = activations(n, d, dtype), torch.randint(-3, classes - 3, (n,))
        codes = plain_codes(plain_bins(t, bins, *ends(t, bin_range)))
        found = binned_information(t, y, bins, bin_range, unit="nats")
        truth = mutual_info_score(codes, codes), mutual_info_score(codes, y.numpy())
        assert found == pytest.approx(truth, abs=1e-12)
        assert partition(bin_codes(t, bins, bin_range)) == partition(codes)


def test_bits_are_nats_by_log_2():
    t, y = activations(100, 3), torch.randint(0, 2, (100,))
    bits, nats = binned_information(t, y), binned_information(t, y, unit="nats")
    assert [value * math.log(2) for value in bits] == pytest.approx(list(nats))
    with pytest.raises(ValueError, match="'bits' or 'nats'"):
        binned_information(t, y, unit="bit")


@pytest.mark.parametrize("y", [torch.tensor([True, False] * 50), torch.arange(100) % 5, torch.arange(100) * 10**15 - 7])
def test_labels_may_be_any_integers(y):
    t = activations(100, 2)
    codes = plain_codes(plain_bins(t, 5, *ends(t, "adaptive")))
    found = binned_information(t, y, 5, unit="nats")
    assert found == pytest.approx([mutual_info_score(codes, labels) for labels in (codes, y.numpy())], abs=1e-12)


def test_without_labels_there_is_no_information_about_them():
    t = activations(50, 2)
    found = binned_information(t, None)
    assert math.isnan(found.I_TY)
    assert found.I_XT == binned_information(t, torch.zeros(50, dtype=torch.long)).I_XT


def test_a_single_unit_may_be_flat():
    t, y = activations(50, 1), torch.randint(0, 2, (50,))
    assert binned_information(t[:, 0], y) == binned_information(t, y)


@pytest.mark.parametrize("bin_range", ["fixed", "adaptive", (2.0, 5.0)])
def test_a_constant_layer_knows_nothing(bin_range):
    found = code_information(bin_codes(torch.full((64, 3), 0.7), 30, bin_range), torch.arange(64) % 2)
    assert found == (0.0, 0.0, 0.0)


def test_a_layer_independent_of_the_labels_knows_nothing_about_them():
    t = torch.arange(6).repeat(4) / 5  # every activation with every label
    found = binned_information(t, torch.arange(4).repeat_interleave(6), 6)
    assert found == pytest.approx((math.log2(6), 0.0), abs=1e-12)


def test_unique_codes_make_both_ceilings_and_say_so():
    y = torch.randint(0, 2, (128,))
    found = code_information(torch.randperm(128), y)
    p = y.double().mean().item()
    assert found == pytest.approx((7, -p * math.log2(p) - (1 - p) * math.log2(1 - p), 1))
    assert code_information(torch.tensor([0, 0, 1, 2, 3])).unique == pytest.approx(0.6)
    assert code_information(torch.tensor([4])) == pytest.approx((0.0, math.nan, 1.0), nan_ok=True)


def test_codes_may_be_any_integers():
    codes = torch.tensor([-(2**63), 2**63 - 1, 0, -(2**63), 5, 5])
    y = torch.tensor([0, 1, 1, 1, 0, 0])
    small = plain_codes(codes.numpy()[:, None])
    assert code_information(codes, y) == code_information(torch.from_numpy(small), y)
    assert code_information(torch.from_numpy(small).to(torch.uint8), y) == code_information(codes, y)


def test_the_hash_and_the_exact_code_split_the_samples_alike(monkeypatch):
    t, y = activations(3000, 12).sign() * torch.rand(3000, 12).round(decimals=1), torch.randint(0, 3, (3000,))
    exact = bin_codes(t, 30, "fixed")
    assert exact.min() >= 0
    assert exact.max() < 2**62
    monkeypatch.setattr(binning, "EXACT_BITS", 53)
    hashed = bin_codes(t, 30, "fixed")
    assert not torch.equal(exact, hashed)
    assert partition(exact) == partition(hashed)
    monkeypatch.setattr(binning, "_PRODUCT_BITS", 12)  # two units in a product
    assert partition(exact) == partition(bin_codes(t, 30, "fixed"))
    monkeypatch.undo()
    assert code_information(hashed, y) == code_information(exact, y)


def test_hashes_of_neighbouring_codes_do_not_collide():
    # 2^18 layers of 64 units that differ in the bins of 18 of them: expected collisions 2^36 / 2^65
    t = torch.zeros(2**18, 64)
    t[:, torch.randperm(64)[:18]] = patterns(18).float()
    assert len(bin_codes(t, 2).unique()) == 2**18
    assert len(bin_codes(t, 30).unique()) == 2**18


@pytest.mark.parametrize(("n", "d"), [(200_000, 6), (40_000, 40)])
def test_samples_in_several_chunks_get_the_codes_that_they_get_in_one(n, d):
    t = activations(n, d)
    together = bin_codes(t, 30, "fixed")
    assert torch.equal(torch.cat([bin_codes(few, 30, "fixed") for few in t.split(500)]), together)


def test_the_order_of_samples_and_units_does_not_matter():
    t, y = activations(300, 20), torch.randint(0, 4, (300,))
    order = torch.randperm(300)
    assert binned_information(t[order], y[order]) == binned_information(t, y)
    assert binned_information(t[:, torch.randperm(20)], y) == binned_information(t, y)


def test_fewer_units_or_bins_know_less():
    # data processing: both are functions of the finer layer
    t, y = activations(400, 4), torch.randint(0, 4, (400,))
    finer = binned_information(t, y, 16, "fixed")
    for coarser in (binned_information(t[:, :3], y, 16, "fixed"), binned_information(t, y, 8, "fixed")):
        assert coarser.I_XT < finer.I_XT
        assert coarser.I_TY < finer.I_TY


def test_activations_beyond_the_range_are_in_the_outermost_bins():
    t = torch.tensor([-9.0, -1.0, -0.99, 0.99, 1.0, 9.0])
    assert bin_codes(t, 4, "fixed").tolist() == [0, 0, 0, 3, 3, 3]
    assert bin_codes(torch.tensor([0.0, 0.5, 1.0, 2.0]), 4, (0.0, 2.0)).tolist() == [0, 1, 2, 3]


def test_an_even_number_of_bins_reads_the_sign_of_tiny_activations():
    t = 1e-6 * torch.randn(4096)
    even, odd = (binned_information(t, None, bins, "fixed").I_XT for bins in (30, 29))
    assert even == pytest.approx(1, abs=1e-3)
    assert odd == 0


def test_entropies_of_units_are_those_of_the_units_alone():
    for bin_range in ("fixed", (-0.5, 3.0)):
        t = activations(200, 7)
        alone = [binned_information(t[:, j], None, 12, bin_range).I_XT for j in range(7)]
        assert unit_entropies(t, 12, bin_range).tolist() == pytest.approx(alone, abs=1e-12)
    t[0], t[1] = -8.0, 8.0  # one range for all units
    alone = [binned_information(t[:, j], None, 12, unit="nats").I_XT for j in range(7)]
    assert unit_entropies(t, 12, unit="nats").tolist() == pytest.approx(alone, abs=1e-12)


def test_regression_targets_become_classes_by_column():
    y = torch.stack([torch.tensor([0.0, 0.1, 0.9, 1.0]), torch.tensor([500.0, 100.0, 100.0, 500.0])], 1)
    assert partition(bin_targets(y, 2)) == [0, 1, 2, 3]
    assert partition(bin_targets(y[:, 0], 2)) == [0, 0, 2, 2]
    assert bin_targets(torch.full((5,), 3.0)).tolist() == [0] * 5
    many = torch.randn(200, 3)
    columns = [plain_bins(c, 6, c.double().min().item(), c.double().max().item()) for c in many.T]
    found = bin_targets(many, 6)
    assert partition(found) == partition(plain_codes(np.stack(columns, 1)))
    assert found.unique().tolist() == list(range(len(found.unique())))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_several_labels_become_one_class(dtype):
    labels = torch.randint(0, 2, (100, 5))
    joint = (labels * 2 ** torch.arange(5)).sum(1)
    assert partition(bin_targets(labels.to(dtype))) == partition(joint)
    assert partition(bin_targets(joint)) == partition(joint)


def test_shuffled_labels_read_what_chance_does():
    # 64 samples in 8 codes of 8 with 2 equally frequent classes: mean of the hypergeometric distribution
    codes, y = torch.arange(64) % 8, torch.arange(64) // 32
    ways = [math.comb(32, k) * math.comb(32, 8 - k) / math.comb(64, 8) for k in range(9)]
    entropy = [sum(-p * math.log2(p) for p in (k / 8, 1 - k / 8) if p) for k in range(9)]
    truth = 1 - sum(way * h for way, h in zip(ways, entropy, strict=True))
    found = shuffled_information(codes, y, repeats=400, generator=torch.Generator().manual_seed(2))
    assert abs(found.mean - truth) <= 4 * found.sd / 20
    assert shuffled_information(torch.arange(64), y, repeats=3) == pytest.approx((1.0, 0.0), abs=1e-12)
    assert math.isnan(shuffled_information(codes, y, repeats=1).sd)


def test_shuffling_uses_its_generator_alone():
    codes, y, state = torch.arange(60) % 7, torch.arange(60) % 2, torch.get_rng_state()
    first, second = (shuffled_information(codes, y, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())


def test_information_with_some_inputs_by_definition_and_its_chain_rule():
    x = patterns(8)
    t = torch.tanh(x.float() @ torch.randn(8, 2))
    codes, chosen = bin_codes(t, 6).numpy(), [1, 4, 6]
    rest = [j for j in range(8) if j not in chosen]
    x_s, x_r = plain_codes(x[:, chosen].numpy()), plain_codes(x[:, rest].numpy())
    alone = mutual_info_score(codes, x_s)
    given = sum((x_r == r).mean() * mutual_info_score(codes[x_r == r], x_s[x_r == r]) for r in np.unique(x_r))
    assert subset_information(t, x, chosen, 6, unit="nats") == pytest.approx(alone, abs=1e-12)
    assert subset_information(t, x, chosen, 6, conditional=True, unit="nats") == pytest.approx(given, abs=1e-12)
    mask = torch.zeros(8, dtype=torch.bool)
    mask[rest] = True
    whole = subset_information(t, x, mask, 6) + subset_information(t, x, ~mask, 6, conditional=True)
    assert whole == pytest.approx(binned_information(t, None, 6).I_XT, abs=1e-12)


def test_information_with_all_inputs_and_with_none():
    x = patterns(6)
    t = torch.tanh(x.float() @ torch.randn(6, 2))
    whole = binned_information(t, None, 5).I_XT
    for conditional in (False, True):
        assert subset_information(t, x, range(6), 5, conditional=conditional) == pytest.approx(whole, abs=1e-12)
        assert subset_information(t, x, [], 5, conditional=conditional) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_discrete_activations(dtype):
    t = torch.randint(0, 2, (60, 5)).to(dtype)
    for bin_range in ("adaptive", "fixed"):
        assert torch.equal(bin_codes(t, 2, bin_range), bin_codes(t.float(), 2, bin_range))


def test_nothing_is_differentiated_and_nothing_is_changed():
    t, y = activations(50, 3).double().requires_grad_(), torch.randint(0, 2, (50,))
    before = t.detach().clone()
    assert not bin_codes(t).requires_grad
    binned_information(t, y)
    unit_entropies(t)
    assert torch.equal(t, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, y: binned_information(t[None], y), r"\(1, 8, 2\): expected \(N,\) or \(N, d\)"),
        (lambda t, y: binned_information(t[:0], y), "neither of them 0"),
        (lambda t, y: binned_information(t / 0, y), "not finite"),
        (lambda t, y: binned_information(t.masked_fill(t == t[0, 0], math.inf), y, 30, "fixed"), "not finite"),
        (lambda t, y: binned_information(t, y.float()), r"bin_targets\(y\)"),
        (lambda t, y: binned_information(t, y[:3]), r"\(3,\): expected \(8,\)"),
        (lambda t, y: binned_information(t, y[:, None]), r"\(8, 1\): expected \(8,\)"),
        (lambda t, y: binned_information(t, y, 0), "bins=0"),
        (lambda t, y: binned_information(t, y, 30, "global"), r"pass its ends, for example bin_range=\(0.0, 8.5\)"),
        (lambda t, y: binned_information(t, y, 30, (1.0, 1.0)), "expected low < high"),
        (lambda t, y: binned_information(t, y, 30, (0.0, math.inf)), "expected low < high"),
        (lambda t, y: code_information(t), r"expected integers \(N,\)"),
        (lambda t, y: code_information(y.float()), r"expected integers \(N,\)"),
        (lambda t, y: shuffled_information(y, y, repeats=0), "repeats=0"),
        (lambda t, y: subset_information(t, y, [0]), r"expected \(N, D\) with N = 8"),
        (lambda t, y: bin_targets(t / 0), "not finite"),
        (lambda t, y: bin_targets(t, 0), "bins=0"),
        (lambda t, y: unit_entropies(t, 0), "bins=0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(8, 2), torch.arange(8) % 2)


# ---- integers and numbers at the ends of their types

INTEGERS = {
    torch.bool: (0, 1),
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.int32: (-(2**31), 2**31 - 1),
    torch.int64: (-(2**63), 2**63 - 1),
    torch.uint64: (0, 2**64 - 1),
}


def exact_bin(value, bins, low, high):
    """By fractions."""
    place = (Fraction(value) - Fraction(low)) * bins / (Fraction(high) - Fraction(low)) if high > low else 0
    return min(max(math.floor(place), 0), bins - 1)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_bins_of_integers_are_those_of_exact_arithmetic(dtype):
    random, (least, most) = np.random.default_rng(0), INTEGERS[dtype]
    for width in (0, 1, 5, 98, 2**40, 2**53 + 1, most - least):
        low = least + int(random.integers(0, 2**62)) % max(1, most - least - width)
        high = min(most, low + width)
        values = [low, high, *(low + int(random.integers(0, 2**63)) * 3 % (high - low + 1) for _ in range(20))]
        t = torch.from_numpy(np.array(values, dtype=str(dtype).removeprefix("torch.")))
        for bins, bin_range in itertools.product((1, 2, 30, 49), ("adaptive", "fixed", (-0.3, 7.7))):
            ends = {"adaptive": (low, high), "fixed": (-1.0, 1.0)}.get(bin_range, bin_range)
            assert bin_codes(t, bins, bin_range).tolist() == [exact_bin(v, bins, *ends) for v in values], (low, high)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_neighbours_beyond_two_to_the_53_stay_apart(dtype):
    t = torch.from_numpy(np.array([2**60, 2**60 + 1, 2**60 + 1, 2**60 + 3], dtype=str(dtype).removeprefix("torch.")))
    assert bin_codes(t, 4).tolist() == [0, 1, 1, 3]
    assert pytest.approx(1.5) == binned_information(t, None, 4).I_XT
    assert exact_codes(t).tolist() == [0, 1, 1, 2]
    rows = torch.stack([t.view(torch.int64)] * 40, 1)
    assert partition(row_hashes(rows)) == [0, 1, 1, 3]


ENDS = [
    [0.0, 5e-324, 1e-323],
    [1e-310, 2e-310, 4e-310],
    [1e-301, 1.5e-301, 1e-300],
    [-1e300, 0.0, 1e300],
    [-1.7e308, 0.0, 1.7e308],
    [1e308, 1.2e308, 1.7e308],
    [1e300, 1e300, 1e300],
    [0.0, 0.0, 1e-310],
]


@pytest.mark.parametrize("bins", [2, 3, 30])
@pytest.mark.parametrize("values", ENDS, ids=str)
def test_bins_of_the_smallest_and_the_largest_numbers_are_those_of_exact_arithmetic(values, bins):
    t = torch.tensor(values, dtype=torch.float64)
    ends = min(values), max(values)
    expected = [exact_bin(value, bins, *ends) for value in values]
    assert bin_codes(t, bins).tolist() == expected
    if ends[0] < ends[1]:
        assert bin_codes(t, bins, ends).tolist() == expected
    assert partition(bin_targets(t, bins)) == partition(expected)
    counts = np.unique(expected, return_counts=True)[1]
    assert unit_entropies(t, bins).item() == pytest.approx(stats.entropy(counts, base=2), abs=1e-12)


def test_bins_of_the_ends_of_single_precision():
    assert bin_codes(torch.tensor([-3.4e38, 0.0, 3.4e38]), 3).tolist() == [0, 1, 2]
    assert bin_codes(torch.tensor([0.0, 1.4e-45, 2.8e-45, 5.6e-45]), 4).tolist() == [0, 1, 2, 3]
    far = torch.tensor([-1e300, 0.5e-310, 1e300], dtype=torch.float64)
    assert bin_codes(far, 2, (0.0, 1e-310)).tolist() == [0, 1, 1]


@pytest.mark.parametrize("function", [bin_codes, exact_codes, bin_targets])
def test_complex_values_are_refused_by_name(function):
    with pytest.raises(ValueError, match="complex"):
        function(torch.randn(4, dtype=torch.cfloat))


def test_codes_are_of_integers():
    with pytest.raises(ValueError, match="expected integers"):
        exact_codes(torch.randn(4))
