"""Runs the benchmark of the frontier on three tiny blocks, and checks its counts, comparisons and files."""

import json
import types

import pytest
import torch

from benchmarks.frontier.__main__ import main
from benchmarks.frontier.domination import dominations, lowtide_failures
from benchmarks.frontier.models import llama_style
from benchmarks.frontier.row import Row
from benchmarks.networks import NETWORKS, Network

BLOCKS, WIDTH, BATCH, TOKENS, VOCABULARY = 3, 64, 2, 32, 128
ATTENTION_FLOPS = 4 * BATCH * TOKENS * TOKENS * WIDTH
BLOCK_FLOPS = 2 * BATCH * TOKENS * 16 * WIDTH**2  # 3 queries, keys, values, 1 projection, 3 · 4 of the gated layer
LAST_FLOPS = 2 * BATCH * TOKENS * 4 * WIDTH**2  # the product that ends a block: backward does not need its result
HEAD_FLOPS = 2 * BATCH * TOKENS * WIDTH * VOCABULARY


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny kernels wait for each other longer than they run
    tiny = Network("tiny", "tiny", lambda quick: llama_style(BLOCKS, WIDTH, BATCH, TOKENS, VOCABULARY), ("blocks",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "tiny", tiny)
        files = ["--json", str(folder / "tiny.json"), "--picture", str(folder / "tiny.png")]
        code = main(["tiny", "--quick", "--rounds", "2", *files])
    torch.set_num_threads(threads)
    (report,) = json.loads((folder / "tiny.json").read_text())["models"]
    return types.SimpleNamespace(code=code, report=report, picture=folder / "tiny.png")


@pytest.fixture(scope="module")
def rows(ran):
    return {row["name"]: row for row in ran.report["rows"]}


def of_kind(rows, kind):
    matching = [row for row in rows.values() if row["kind"] == kind]
    assert matching
    return matching


def total(row):
    return sum(row["flops"].values())


@pytest.mark.slow
def test_eager_is_counted_with_attention(rows):
    assert total(rows["eager"]) == 3 * (BLOCKS * BLOCK_FLOPS + HEAD_FLOPS) + 3.5 * BLOCKS * ATTENTION_FLOPS


@pytest.mark.slow
def test_checkpointing_runs_forward_again_but_for_its_last_product(rows):
    extra = total(rows["checkpoint every block"]) - total(rows["eager"])
    assert extra == BLOCKS * (BLOCK_FLOPS - LAST_FLOPS + ATTENTION_FLOPS)
    grouped = total(rows["checkpoint every 2 blocks"]) - total(rows["eager"])
    # Two blocks in one checkpoint and one in another: only a checkpoint's last product is spared.
    assert grouped == BLOCKS * (BLOCK_FLOPS + ATTENTION_FLOPS) - 2 * LAST_FLOPS


@pytest.mark.slow
def test_selective_checkpointing_keeps_what_is_expensive(rows):
    selective, eager = rows["selective in every block"], rows["eager"]
    assert total(selective) == total(eager) and selective["peak_bytes"] < eager["peak_bytes"]
    mixture, full = rows["last 1 selective, others full"], rows["checkpoint every block"]
    assert mixture["extra_flops_share"] == pytest.approx(full["extra_flops_share"] * (BLOCKS - 1) / BLOCKS)


@pytest.mark.slow
def test_compiled_steps_are_counted_as_compiled(rows):
    kept, dropped = rows["torch memory budget 1"], rows["torch memory budget 0.1"]
    assert total(kept) == total(rows["eager"]) < total(dropped)
    assert dropped["peak_bytes"] < kept["peak_bytes"] < rows["eager"]["peak_bytes"]


@pytest.mark.slow
def test_gradients_of_peers_are_those_of_eager(rows):
    for row in rows.values():
        if row["kind"] == "memory budget":
            assert row["gradient_error"] < 1e-5
        else:
            assert row["gradient_error"] == 0 and row["loss_equal"] and row["buffers_equal"], row["name"]


@pytest.mark.slow
def test_lowtide_is_measured_as_predicted_and_within_budget(rows):
    for row in of_kind(rows, "lowtide"):
        assert row["failure"] is None
        assert row["peak_bytes"] == row["predicted_peak_bytes"] <= row["budget_bytes"]
        # Planned with costs="flops": compared with operations, bytes weigh next to nothing.
        assert row["extra_flops_share"] == pytest.approx(row["predicted_extra_share"], abs=1e-4)
        assert row["gap_share"] >= -1e-12 and row["bound_share"] >= 0


@pytest.mark.slow
def test_lowtide_is_planned_at_every_peers_peak(rows):
    answered = {name: row for row in of_kind(rows, "lowtide") for name in row["budget_of"]}
    peers = [row for row in rows.values() if row["kind"] != "lowtide"]
    assert {row["name"] for row in peers} == set(answered)
    assert all(answered[row["name"]]["budget_bytes"] == row["peak_bytes"] for row in peers)


@pytest.mark.slow
def test_everything_is_written(ran, rows):
    assert ran.code == 0 and ran.report["failures"] == []
    assert {domination["peer"] for domination in ran.report["domination"]} == {
        n for n, r in rows.items() if r["kind"] != "lowtide"
    }
    assert {domination["verdict"] for domination in ran.report["domination"]} <= {"better", "equal", "WORSE"}
    assert all(len(row["seconds"]) == 2 and row["time_ratio"] > 0 for row in rows.values())
    assert rows["eager"]["time_ratio"] == 1
    assert [budget for budget, _ in ran.report["bound"]] == sorted(budget for budget, _ in ran.report["bound"])
    assert ran.picture.stat().st_size > 10_000


def planned(**changed):
    numbers = {"budget_bytes": 100, "peak_bytes": 90, "predicted_peak_bytes": 90, "flops": {"mm": 110}}
    same_results = {"gradient_error": 0.0, "loss_equal": True, "buffers_equal": True, "budget_of": ["peer"]}
    return Row("lowtide", "lowtide", extra_flops_share=0.1, **{**numbers, **same_results, **changed})


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "better"),
        ({"flops": {"mm": 120}}, "equal"),
        ({"peak_bytes": 100}, "equal"),
        ({"flops": {"mm": 121}}, "WORSE"),
        ({"peak_bytes": 101}, "WORSE"),
        ({"failure": "infeasible"}, "WORSE"),
    ],
)
def test_verdicts(changed, verdict):
    peer = Row("peer", "checkpoint", peak_bytes=100, flops={"mm": 120}, extra_flops_share=0.2)
    (domination,) = dominations([peer, planned(**changed)], "flops")
    assert domination.verdict == verdict


@pytest.mark.parametrize(
    "changed",
    [
        {"predicted_peak_bytes": 89},
        {"gradient_error": 1e-9},
        {"loss_equal": False},
        {"buffers_equal": False},
        {"budget_bytes": 89},
        {"failure": "CaptureError: no"},
    ],
)
def test_failures_are_reported(changed):
    assert lowtide_failures([planned()]) == []
    assert len(lowtide_failures([planned(**changed)])) == 1


@pytest.mark.parametrize(("error", "is_wrong"), [(0.0, False), (1e-6, False), (0.5, True)])
def test_a_peer_with_other_gradients_is_reported(error, is_wrong):
    peer = Row("peer", "checkpoint", peak_bytes=100, flops={"mm": 1}, extra_flops_share=0.0, gradient_error=error)
    (domination,) = dominations([peer, planned()], "flops")
    assert domination.verdict == "WORSE" and domination.is_peer_wrong == is_wrong
