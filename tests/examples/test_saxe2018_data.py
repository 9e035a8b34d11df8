"""The data of Saxe et al. (2018): the 12-bit task and the linear teacher."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "saxe2018"))

from data import BITS, NEIGHBOURS, PATTERNS, labels, patterns, split, teacher

from lightning_info.functional import code_information


def symmetries():
    """All automorphisms of the graph of the bits: permutations that keep neighbours neighbours."""
    found = []

    def extend(image):
        vertex = len(image)
        if vertex == BITS:
            found.append(image)
            return
        for candidate in set(range(BITS)) - set(image):
            if all((u in NEIGHBOURS[vertex]) == (image[u] in NEIGHBOURS[candidate]) for u in range(vertex)):
                extend([*image, candidate])

    extend([])
    return found


class TestTwelveBits:
    def test_patterns_count_in_binary(self):
        weights = 2.0 ** torch.arange(BITS - 1, -1, -1)
        assert torch.equal((patterns() @ weights).long(), torch.arange(PATTERNS))

    def test_positive_labels(self):
        entropy = code_information(labels()).I_XT
        assert labels().sum().item() == 2118
        assert entropy == pytest.approx(0.99916, abs=1e-5)

    def test_the_graph_is_the_icosahedron(self):
        assert all(len(set(others)) == 5 for others in NEIGHBOURS)
        assert all(vertex in NEIGHBOURS[other] for vertex, others in enumerate(NEIGHBOURS) for other in others)
        assert len(symmetries()) == 120

    def test_labels_are_invariant_under_its_symmetries(self):
        weights, y = 2 ** torch.arange(BITS - 1, -1, -1), labels()
        for image in symmetries():
            moved = (patterns()[:, image].long() * weights).sum(1)
            assert torch.equal(y[moved], y)

    def test_labels_are_not_invariant_under_any_permutation(self):
        image = [1, 0, *range(2, BITS)]  # a transposition is no symmetry
        moved = (patterns()[:, image].long() * 2 ** torch.arange(BITS - 1, -1, -1)).sum(1)
        assert not torch.equal(labels()[moved], labels())

    def test_harmonic_coefficients(self):
        """Of degree one all equal, of degree two three values for 30 edges, 30 second neighbours, 6 opposite pairs."""
        signs, y = 1 - 2 * patterns().double(), 1 - 2 * labels().double()
        assert (signs.T @ y / PATTERNS).std() < 1e-12
        both = (signs.T @ (signs * y[:, None])).triu(1)
        values, counts = torch.unique(both[torch.ones(BITS, BITS).triu(1).bool()], return_counts=True)
        assert len(values) == 3
        assert sorted(counts.tolist()) == [6, 30, 30]

    def test_splits_part_the_patterns(self):
        train, test = split(3)
        assert len(train) == 3276
        assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(PATTERNS))
        assert not torch.equal(split(4)[0], train)


def test_the_teacher_has_the_variances_of_section_3():
    told = teacher(0, examples=200_000, inputs=20, weight_variance=4.0, noise_variance=0.5, relevant=5)
    assert (told.w[0, 5:] == 0).all()
    assert torch.allclose(told.x @ told.x.T / 200_000, torch.eye(20) / 20, atol=0.001)
    assert (told.y - told.w @ told.x).var().item() == pytest.approx(0.5, rel=0.02)
