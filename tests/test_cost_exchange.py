"""Rows between devices: counted as a loop counts them, and as many as sizes lead one to expect."""

from __future__ import annotations

import numpy as np
import pytest

from minimoe import MoEConfig
from minimoe.cost import rows_between
from minimoe.errors import UserError
from minimoe.parallel import devices_per_token


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "devices"), [(12, 8, 3, 4), (10, 6, 2, 2), (7, 7, 7, 7), (3, 4, 2, 1)]
)
def test_rows_are_those_of_a_loop(tokens, num_experts, top_k, devices):
    rng = np.random.default_rng(0)
    experts = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
    rows = np.zeros((devices, devices), int)
    for t, chosen in enumerate(experts):
        home = t // (tokens // devices)
        for device in {e // (num_experts // devices) for e in chosen.tolist()} - {home}:
            rows[home, device] += 1
    np.testing.assert_array_equal(rows_between(experts, num_experts, devices), rows)


def test_random_routing_needs_the_devices_that_are_expected():
    rng = np.random.default_rng(1)
    num_experts, top_k, devices, tokens = 32, 6, 8, 4096
    experts = np.argsort(rng.random((tokens, num_experts)), axis=1)[:, :top_k]
    sent = rows_between(experts, num_experts, devices).sum() / tokens
    reached = devices_per_token(MoEConfig(8, 8, num_experts, top_k), devices)
    assert sent == pytest.approx(reached * (1 - 1 / devices), rel=0.01)  # of those, its own device is one in P


@pytest.mark.parametrize(
    ("experts", "num_experts", "devices", "says"),
    [
        ([[0, 1]], 4, 2, "1 tokens cannot be divided over 2"),
        ([[0], [1]], 3, 2, "3 experts"),
        ([[0], [4]], 4, 2, r"0\.\.3; found 4"),
        ([[-1], [0]], 4, 2, "found -1"),
        ([0, 1], 4, 2, "shape is"),
        ([[0], [1]], 4, 0, "devices"),
    ],
)
def test_what_cannot_be_divided_is_refused(experts, num_experts, devices, says):
    with pytest.raises(UserError, match=says):
        rows_between(experts, num_experts, devices)
