"""Prices: worked examples, anchors, re-pricing, validation."""

from __future__ import annotations

import numpy as np
import pytest

from lufjax.presets import load_preset, preset_names
from lufjax.results.analysis import RECEIVED
from lufjax.results.cost import CostModel, cost_from_fields, cross_share, load_cost, price

from .synthetic import results

TRANSPORT = dict.fromkeys(("never", "linux", "luf_v10", "eager"), "interrupt")


@pytest.mark.parametrize("name", preset_names("cost"))
def test_every_shipped_model_loads(name):
    assert isinstance(load_cost(name), CostModel)


def test_anchors_of_the_affine_fit():
    two, eight = load_cost("xeon_2s", {"cpus_per_socket": 8}), load_cost("large_8s")
    for model, cpus, expected_us in ((two, 16, 6.0), (eight, 120, 80.0)):
        share = cross_share(cpus, model)
        mean_target = model.initiator_same_socket_ns * (1 - share) + model.initiator_cross_socket_ns * share
        assert (model.initiator_base_ns + (cpus - 1) * mean_target) / 1000 == pytest.approx(expected_us, rel=0.05)


def test_cross_share_when_sockets_fill_up():
    model = load_cost("xeon_2s")
    assert cross_share(1, model) == 0
    assert cross_share(32, model) == 0
    assert cross_share(64, model) == pytest.approx(2 * 32 * 32 / (64 * 63))


def test_price_of_one_lane_by_hand():
    ds = results(policies=("never", "linux"), num_cpus=(4,), pressure=(2.0,), seeds=1)
    model = load_cost("xeon_1s")
    lane = {
        name: float(ds[name].sel(policy="linux").squeeze()) for name in ("nr_tlb_remote_flush", RECEIVED, "needless", "sweeps", "accesses")
    }
    walks = (ds["dtlb_load_misses"] + ds["dtlb_store_misses"]).squeeze()
    priced = price(ds, model, TRANSPORT).sel(policy="linux").squeeze()
    initiator = 900 * lane["nr_tlb_remote_flush"] + 150 * lane[RECEIVED]
    responder = 700 * lane[RECEIVED] + 150 * (lane[RECEIVED] - lane["needless"])
    refill = 17.1 * float(walks.sel(policy="linux") - walks.sel(policy="never"))
    assert float(priced["initiator"]) == pytest.approx(initiator / lane["accesses"])
    assert float(priced["responder"]) == pytest.approx(responder / lane["accesses"])
    assert float(priced["refill"]) == pytest.approx(refill / lane["accesses"])
    assert float(priced["lost"]) == pytest.approx((initiator + responder + refill) / lane["accesses"])


def test_nothing_is_lost_at_one_cpu_and_by_the_control():
    priced = price(results(), load_cost("xeon_1s"), TRANSPORT)
    assert (priced["lost"].sel(num_cpus=1) == 0).all()
    assert (priced["lost"].sel(policy="never") == 0).all()


def test_repricing_scales_and_needs_only_the_results():
    ds = results()
    cheap, dear = (price(ds, load_cost("xeon_1s", {"responder_ns": ns, "responder_flush_ns": 0}), TRANSPORT) for ns in (500, 1000))
    np.testing.assert_allclose(dear["responder"], 2 * cheap["responder"])
    np.testing.assert_allclose(dear["initiator"], cheap["initiator"])


def test_broadcast_by_policy_and_for_all():
    ds = results()
    own = price(ds, load_cost("xeon_1s"), {**TRANSPORT, "luf_v10": "broadcast"})
    everyone = price(ds, load_cost("broadcast"), TRANSPORT)
    sent = 550 * ds["nr_tlb_remote_flush"] / ds["accesses"]
    np.testing.assert_allclose(own["initiator"].sel(policy="luf_v10"), sent.sel(policy="luf_v10"))
    assert (own["responder"].sel(policy="luf_v10") == 0).all()
    assert (own["responder"].sel(policy="linux", num_cpus=16) > 0).all()
    np.testing.assert_allclose(everyone["initiator"], sent)
    np.testing.assert_allclose(everyone["refill"], own["refill"])


def test_refill_without_a_control_is_missing_or_assumed():
    ds = results(policies=("linux", "luf_v10"))
    measured, assumed = (price(ds, load_cost("xeon_1s", {"refill": word}), TRANSPORT) for word in ("measured", "assumed"))
    assert np.isnan(measured["refill"].sel(num_cpus=16)).all()
    np.testing.assert_allclose(measured["lost"], measured["initiator"] + measured["responder"])
    walks = ds["dtlb_load_misses"] + ds["dtlb_store_misses"]
    assert (assumed["refill"] * ds["accesses"] <= 17.1 * walks + 1e-6).all()
    assert (assumed["refill"].sel(num_cpus=16) > 0).all()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"responder_ns": -1}, "cost.responder_ns=-1: allowed are numbers from 0 to 1000000 (nanoseconds)"),
        ({"walk_ns": "fast"}, "cost.walk_ns=fast: allowed are numbers from 0 to 1000000 (nanoseconds)"),
        ({"sockets": 0}, "cost.sockets=0: allowed are integers from 1 to 64"),
        ({"sockets": True}, "cost.sockets=True: allowed are integers from 1 to 64"),
        ({"transport": "pigeon"}, "cost.transport=pigeon: allowed are policy, interrupt, broadcast"),
        ({"refill": None}, "cost.refill=None: allowed are measured, assumed"),
    ],
)
def test_a_wrong_field_is_one_line(change, line):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        load_cost("xeon_1s", change)
    assert str(raised.value) == line


def test_unknown_missing_and_too_small(tmp_path):
    fields = load_preset("cost", "xeon_1s")
    with pytest.raises(ValueError, match=r"^cost\.speed=1: no such field; allowed are transport, "):
        cost_from_fields("mine", {**fields, "speed": 1})
    with pytest.raises(ValueError, match=r"^cost\.walk_ns: missing; a cost model names every field$"):
        cost_from_fields("mine", {k: v for k, v in fields.items() if k != "walk_ns"})
    with pytest.raises(ValueError, match=r"^cost\.sockets=1: .* this run needs at least 16$"):
        price(results(), load_cost("xeon_1s", {"cpus_per_socket": 8}), TRANSPORT)
    with pytest.raises(ValueError, match=r"^cost=.*mine\.yaml: no such file"):
        load_cost(str(tmp_path / "mine.yaml"))
    with pytest.raises(ValueError, match=r"^policy\.transport=None of policy never: allowed are interrupt, broadcast$"):
        price(results(), load_cost("xeon_1s"), {})
