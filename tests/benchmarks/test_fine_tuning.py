"""Runs the benchmark of fine-tuning on a tiny BERT and a few docstrings, and checks its figures and refusals."""

import dataclasses

import pytest
import torch

from benchmarks.approximate.force_encoded import named
from benchmarks.fine_tuning.__main__ import accuracy, fine_tuning, main, train
from benchmarks.fine_tuning.picture import draw
from benchmarks.fine_tuning.settings import DERIVATIVES, SETTINGS, Setting
from benchmarks.fine_tuning.table import print_table
from benchmarks.fine_tuning.tasks import bert_of_docstrings, docstrings

# BERT sets an attribute of its configuration in forward.
pytestmark = pytest.mark.filterwarnings("ignore:forward sets problem_type")

NAMES = ("exact", "derivatives, 2 bits", "rows, 0.1 kept", "all values, 2 bits")
NOTHING = Setting("of no value", DERIVATIVES, "1", (named("9-bit gelu'"),))


@pytest.fixture(scope="module")
def report():
    task = dataclasses.replace(bert_of_docstrings((1, 1), layers=1, width=32, tokens=16, most=24), learning_rate=3e-3)
    settings = [setting for setting in SETTINGS if setting.name in NAMES] + [NOTHING]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny kernels wait for each other longer than they run
    measured = fine_tuning(task, settings, seeds=2, rounds=2)
    torch.set_num_threads(threads)
    return measured


@pytest.fixture(scope="module")
def rows(report):
    return {row["name"]: row for row in report["rows"]}


@pytest.mark.slow
def test_codes_take_fewer_bytes_and_add_variance(rows):
    exact, few = rows["exact"], rows["all values, 2 bits"]
    assert exact["peak_ratio"] == exact["time_ratio"] == 1 and exact["added"] == exact["encoded"] == 0
    assert few["encoded"] > rows["rows, 0.1 kept"]["encoded"] > rows["derivatives, 2 bits"]["encoded"] == 1
    assert all(0 < rows[name]["added"] < float("inf") for name in NAMES[1:])
    assert few["kept_ratio"] < rows["rows, 0.1 kept"]["kept_ratio"] < 1
    assert few["peak_ratio"] < rows["derivatives, 2 bits"]["peak_ratio"] < 1
    assert few["added"] > rows["derivatives, 2 bits"]["added"]


@pytest.mark.slow
def test_every_setting_trains_on_from_the_same_starts(report, rows):
    assert len(report["start"]) == 2
    losses = [rows[name]["losses"] for name in NAMES]
    assert all(len(setting_losses) == 2 and min(setting_losses) > 0 for setting_losses in losses)
    assert len({tuple(setting_losses) for setting_losses in losses}) == len(losses)  # each setting has other gradients
    # one epoch of few steps: noise has not yet led far from the loss of exact gradients
    assert rows["derivatives, 2 bits"]["losses"] == pytest.approx(rows["exact"]["losses"], rel=0.05)


@pytest.mark.slow
def test_table_and_picture_show_every_setting(report, capsys, tmp_path):
    print_table(report)
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    draw([report], tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 10_000


def test_training_lowers_the_loss_and_finds_classes():
    task = dataclasses.replace(bert_of_docstrings(layers=1, width=32, tokens=16, most=24), learning_rate=1e-2)
    model = task.build(0)
    first = train(model, task, range(1), 0, decays=False)
    assert train(model, task, range(1, 8), 0, decays=True) < 0.7 * first
    assert accuracy(model, task.train) > 2 / model.config.num_labels


def test_no_docstring_is_both_trained_and_tested_on():
    train_data, test_data, names = docstrings(16, 512, 50)
    seen = {tuple(ids) for ids in train_data["input_ids"].tolist()}
    held_out = [tuple(ids) for ids in test_data["input_ids"].tolist()]
    assert not seen & set(held_out) and len(set(held_out)) == len(held_out)
    assert len(names) >= 6 and set(train_data["labels"].tolist()) == set(range(len(names)))
    assert train_data["input_ids"].max() < 512
    repeated, _, _ = docstrings(16, 512, 50)
    assert torch.equal(repeated["input_ids"], train_data["input_ids"])


@pytest.mark.slow
def test_a_setting_that_no_value_has_is_reported(report, rows, capsys):
    assert rows[NOTHING.name]["accuracies"] == [] and rows[NOTHING.name]["encoded"] == 0
    print_table(report)
    assert f"{NOTHING.name:<20}    no value of this step has such a code" in capsys.readouterr().out


def test_an_unknown_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["gpt"])
    assert "no task is called gpt: name some of vit, resnet" in capsys.readouterr().err
