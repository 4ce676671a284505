import dataclasses
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seq2seq.config import (
    ModelConfig,
    RunConfig,
    SearchConfig,
    TrainConfig,
    Value,
    check,
    check_model,
    differences,
    explain_toml,
    get,
    model_from_dict,
    override,
    read_toml,
    seconds,
    set_field,
    setting_names,
    to_dict,
    write_toml,
)
from tokenizer.errors import UserError

FIELDS = [
    (f"{section.name}.{setting.name}", setting)
    for section in dataclasses.fields(RunConfig)
    for setting in dataclasses.fields(section.default)
]
BOUNDED = [(name, f.metadata) for name, f in FIELDS if f.metadata["low"] is not None]
CHOICES = [(name, f.metadata) for name, f in FIELDS if f.metadata["choices"] is not None]


def test_importing_the_settings_does_not_import_torch() -> None:
    code = "import seq2seq.config, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_setting_says_what_it_means() -> None:
    assert all(f.metadata["meaning"] for _, f in FIELDS)
    assert all(f.metadata["meaning"] for f in dataclasses.fields(SearchConfig))


def test_the_defaults_keep_their_own_rules() -> None:
    defaults = {n: v for n in setting_names() if (v := get(RunConfig(), n)) is not None}
    assert override(RunConfig(), defaults, "defaults") == RunConfig()
    check(RunConfig())


# Names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("model.d_modle", "model.d_model"),
        ("model.n_head", "model.n_heads"),
        ("optim.learning_rate", "optim."),
        ("lr", "'optim.lr'?"),
        ("train.lr", "'optim.lr'?"),
        ("OPTIM.LR", "'optim.lr'?"),
        ("vocab_size", "'model.vocab_size' or 'data.vocab_size'?"),
        ("modle.d_model", "model.d_model"),
        ("d_model", "model.d_model"),
        ("train.sed", "train.seed"),
        ("optim.lr.x", "optim.lr"),
        ("model", "model."),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match="--set: ") as error:
        override(RunConfig(), {name: "1"}, "--set")
    assert "unknown setting" in str(error.value)
    assert nearest in str(error.value)


def test_names_are_unique_and_all_can_be_read() -> None:
    names = setting_names()
    assert len(names) == len(set(names)) == len(FIELDS)
    assert get(RunConfig(), "model.d_model") == ModelConfig().d_model


# Types


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.d_model", "64", 64),
        ("optim.lr", "0.002", 0.002),
        ("optim.lr", "2e-3", 0.002),
        ("optim.lr", "1", 1.0),
        ("model.activation", "swiglu", "swiglu"),
        ("model.tie_embeddings", "none", "none"),
        ("train.max_steps", "10", 10),
        ("train.max_steps", "none", None),
        ("train.max_time", "none", None),
        ("train.max_time", "30m", "30m"),
    ],
)
def test_text_is_read_as_the_type_of_the_setting(name: str, text: str, value: Value | None) -> None:
    result = get(override(RunConfig(), {name: text}, "--set"), name)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("True", True), ("1", True), ("false", False), ("0", False)],
)
def test_truth_values_are_read_from_text(text: str, value: bool) -> None:
    assert set_field(SearchConfig(), "sample", text, "--sample").sample is value


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("model.d_model", "64.5", "a whole number"),
        ("model.d_model", 64.0, "a whole number"),
        ("model.d_model", "", "a whole number"),
        ("model.d_model", "9" * 5000, "a whole number"),
        ("model.d_model", True, "a whole number"),
        ("model.d_model", [64], "a whole number"),
        ("model.d_model", None, "a whole number"),
        ("model.d_model", "none", "a whole number"),
        ("optim.lr", "fast", "a number"),
        ("optim.lr", False, "a number"),
        ("optim.lr", 10**400, "a number"),
        ("model.activation", 5, "text"),
        ("train.max_time", 30, "text"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name: str, value: Value, kind: str) -> None:
    with pytest.raises(UserError, match=f"f.toml: {name}: .* is not {kind}"):
        override(RunConfig(), {name: value}, "f.toml")


def test_yes_is_no_truth_value() -> None:
    with pytest.raises(UserError, match="'yes' is not true or false"):
        set_field(SearchConfig(), "sample", "yes", "--sample")


# Ranges


@pytest.mark.parametrize(("name", "rule"), BOUNDED)
def test_bounds_are_allowed_and_what_lies_beyond_is_not(name: str, rule: dict) -> None:
    low, high = rule["low"], rule["high"]
    for inside in (low, high):
        if inside is not None:
            assert get(override(RunConfig(), {name: inside}, "x"), name) == inside
    for outside in (low - 1, None if high is None else high * 2 + 1):
        if outside is not None:
            with pytest.raises(UserError, match=f"x: {name}: .* is out of range; it must be"):
                override(RunConfig(), {name: outside}, "x")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(number: str) -> None:
    for name in ("optim.lr", "optim.clip_norm", "optim.min_lr"):
        with pytest.raises(UserError, match="out of range"):
            override(RunConfig(), {name: number}, "--set")


@pytest.mark.parametrize(("name", "rule"), CHOICES)
def test_a_choice_is_one_of_those_that_the_message_lists(name: str, rule: dict) -> None:
    for choice in rule["choices"]:
        assert get(override(RunConfig(), {name: choice}, "x"), name) == choice
    with pytest.raises(UserError, match=", ".join(rule["choices"])):
        override(RunConfig(), {name: "other"}, "x")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.d_model": 32, "model.n_heads": 3}, "n_heads = 3 does not divide .*d_model = 32"),
        ({"model.d_model": 12, "model.n_heads": 4, "model.positions": "rotary"}, "even width"),
        ({"model.d_model": 9, "model.n_heads": 3}, "d_model = 9 is odd"),
        ({"train.max_time": "soon"}, "max_time: 'soon'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, Value], words: str) -> None:
    config = override(RunConfig(), values, "--set")
    with pytest.raises(UserError, match=words):
        check(config)


def test_an_odd_width_is_fine_where_no_position_needs_pairs() -> None:
    check_model(ModelConfig(d_model=9, n_heads=3, positions="learned"), "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("45", 45),
        ("90s", 90),
        ("30m", 1800),
        ("1.5h", 5400),
        ("2H", 7200),
        ("1d", 86_400),
        ("2h20m", 8400),
    ],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(
    "text", ["", "s", "0", "-5m", "nan", "infh", "1w", "1 hour", "1e999", "2h20", "9m1h"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="write for example 90s, 30m or 2h30m"):
        seconds(text)


# Files


def some_config() -> RunConfig:
    values = {"model.d_model": 64, "optim.lr": 0.1 + 0.2, "train.max_time": "1h", "train.seed": 7}
    return override(RunConfig(), values, "x")


@pytest.mark.parametrize("config", [RunConfig(), some_config()])
def test_settings_survive_the_way_through_toml(config: RunConfig) -> None:
    data = write_toml(config, "made by tfm\non a Friday")
    assert data.startswith(b"# made by tfm\n# on a Friday\n")
    assert override(RunConfig(), read_toml(data, "x"), "x") == config
    assert override(RunConfig(), read_toml(b"\xef\xbb\xbf" + data, "x"), "x") == config


@pytest.mark.parametrize("config", [RunConfig(), some_config()])
def test_explained_settings_are_all_there_and_the_same(config: RunConfig) -> None:
    text = explain_toml(config)
    assert override(RunConfig(), read_toml(text.encode(), "x"), "x") == config
    for name in setting_names():
        _, field = name.split(".")
        assert f"\n{field} = " in text or f"\n# {field} = " in text
    assert "# share of BPE merges dropped (Provilkov et al. 2020)  [from 0 to 0.9]\n" in text


@given(lr=st.floats(1e-12, 1e30), seed=st.integers(0, 2**31 - 1), steps=st.integers(1))
def test_numbers_survive_the_way_through_toml_exactly(lr: float, seed: int, steps: int) -> None:
    train = TrainConfig(seed=seed, max_steps=steps)
    config = dataclasses.replace(override(RunConfig(), {"optim.lr": lr}, "x"), train=train)
    assert override(RunConfig(), read_toml(write_toml(config), "x"), "x") == config


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[model", "not valid TOML"),
        (b"[model]\nd_model = \xff\n", "not valid TOML"),
        (b"[model]\nd_model = " + b"9" * 5000, "not valid TOML"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"[modle]\nd_model = 1\n", r"unknown table 'modle'; there are \[model\], \[data\]"),
        (b"model = 3\n", "unknown table 'model'"),
        (b"d_model = 3\n", "unknown table 'd_model'"),
    ],
)
def test_a_file_that_is_no_such_toml_is_refused_by_name(data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=f"my.toml: {words}"):
        read_toml(data, "my.toml")


def test_a_nested_table_is_an_unknown_setting() -> None:
    values = read_toml(b"[model.encoder]\nlayers = 3\n", "my.toml")
    with pytest.raises(UserError, match=r"my.toml: unknown setting 'model.encoder'"):
        override(RunConfig(), values, "my.toml")


def test_a_model_survives_the_way_through_a_table() -> None:
    model = ModelConfig(d_model=64, activation="gelu", dropout=0.0)
    assert model_from_dict(to_dict(model), "config.json") == model


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d_model": None}, "model.d_model: None is not a whole number"),
        ({"d_model": "32"}, "model.d_model: '32' is text, not a number"),
        ({"d_model": math.nan}, "model.d_model: nan is not a whole number"),
        ({"n_heads": 7}, "n_heads = 7 does not divide"),
        ({"n_experts": 8}, "model.n_experts: unknown setting"),
        ({"activation": "tanh"}, "'tanh' is not one of relu, gelu, swiglu"),
        ({"vocab_size": -1}, "out of range"),
    ],
)
def test_an_impossible_model_from_a_file_is_refused(change: dict, words: str) -> None:
    with pytest.raises(UserError, match=f"config.json: .*{words}"):
        model_from_dict(to_dict(ModelConfig()) | change, "config.json")


@pytest.mark.parametrize("table", [None, [], "model", 3])
def test_a_model_that_is_no_table_is_refused(table: object) -> None:
    with pytest.raises(UserError, match="'model' is not a table"):
        model_from_dict(table, "config.json")


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(ModelConfig)])
def test_a_model_from_a_file_takes_nothing_from_the_defaults(name: str) -> None:
    table = to_dict(ModelConfig())
    del table[name]
    with pytest.raises(UserError, match=f"model.{name} is missing"):
        model_from_dict(table, "config.json")


def test_differences_name_what_changed_with_old_and_new_value() -> None:
    old = RunConfig()
    new = override(old, {"optim.lr": 0.5, "train.max_steps": 9}, "x")
    assert differences(old, new) == [("optim.lr", 1e-3, 0.5), ("train.max_steps", None, 9)]
    assert differences(new, new) == []
