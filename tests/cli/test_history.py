import json

import pytest

from cli.history import learning_curves, perplexity, read_log

STEP = {
    "kind": "step",
    "step": 5,
    "epoch": 1,
    "nll": 2.0,
    "lr": 0.1,
    "tokens_per_second": 9.0,
    "seconds": 1.0,
}
VALIDATION = {
    "kind": "validation",
    "step": 5,
    "nll": 0.0,
    "bleu": 0.0,
    "chrf": 9.0,
    "is_best": True,
    "seconds": 1.0,
}


@pytest.fixture
def log(tmp_path):
    """Write lines to a log and read it."""

    def read(*lines):
        (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
        return read_log(tmp_path / "log.jsonl")

    return read


def line(entry, **changes):
    return json.dumps({**entry, **changes}).encode()


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"[1]",
        b"\xff\xfe",
        b'{"kind": ["step"]}',
        line(STEP)[:-4],
        line(STEP, nll="low"),
        line(STEP, nll=float("nan")),
        line(STEP, step=10**400),
        line(STEP, kind="validation"),
        line(VALIDATION, bleu=-(10.0**300)),
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_entry_is_left_out(log, foreign):
    assert log(line(STEP), foreign, line(VALIDATION), foreign) == [STEP, VALIDATION]


def test_there_is_nothing_in_a_log_that_is_not_there(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []


def test_the_perplexity_of_a_hopeless_model_is_still_a_number():
    assert perplexity(0.0) == 1.0
    assert perplexity(1e6) == 1e9


def test_each_panel_has_a_curve_of_each_run_in_the_order_of_steps():
    later = {**STEP, "step": 7, "nll": 1.0}
    panels = learning_curves({"a": [later, STEP, VALIDATION], "b": [STEP]})
    assert [p.title.split(",")[0] for p in panels] == [
        "training loss",
        "validation perplexity",
        "validation BLEU",
        "learning rate",
    ]
    assert [[s.name for s in p.series] for p in panels] == [["a", "b"]] * 4
    assert panels[0].series[0].points == ((5.0, 2.0), (7.0, 1.0))
    assert panels[1].series[0].points == ((5.0, 1.0),)
    assert panels[1].series[1].points == ()


def test_what_was_never_measured_has_no_panel():
    assert len(learning_curves({"a": [STEP]})) == 2
    assert learning_curves({"a": []}) == []


def test_a_perplexity_too_small_for_a_float_has_no_point():
    assert not any(p.is_log for p in learning_curves({"a": [{**VALIDATION, "nll": -1e14}]}))
