import pytest

from seq2seq.config import RunConfig, check, get
from seq2seq.presets import PRESETS, Facts, apply, decide

SIZES = [1, 200, 1_000, 9_999, 29_000, 160_000, 1_000_000, 40_000_000]


def resolved(n_pairs: int, device: str = "cpu", preset: str = "auto") -> RunConfig:
    return apply(RunConfig(), decide(preset, Facts(n_pairs, device)))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("n_pairs", SIZES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_preset_gives_settings_that_can_be(preset: str, n_pairs: int, device: str) -> None:
    config = resolved(n_pairs, device, preset)
    check(config)
    assert config.data.vocab_size >= 500


@pytest.mark.parametrize("preset", PRESETS)
def test_every_decision_has_one_setting_and_a_reason(preset: str) -> None:
    decisions = decide(preset, Facts(29_000, "cpu"))
    assert len({d.name for d in decisions}) == len(decisions)
    for decision in decisions:
        assert decision.reason.strip()
        assert get(apply(RunConfig(), decisions), decision.name) == decision.value


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_more_data_means_larger_models_less_noise_and_more_pieces(device: str) -> None:
    configs = [resolved(n, device) for n in SIZES]
    widths = [c.model.d_model for c in configs]
    dropouts = [c.model.dropout for c in configs]
    vocabularies = [c.data.vocab_size for c in configs]
    batches = [c.data.batch_tokens for c in configs]
    assert widths == sorted(widths)
    assert dropouts == sorted(dropouts, reverse=True)
    assert vocabularies == sorted(vocabularies)
    assert batches == sorted(batches)


@pytest.mark.parametrize(
    ("n_pairs", "device", "d_model", "vocabulary"),
    [
        (1_000, "cpu", 128, range(1_000, 2_000)),
        (29_000, "cpu", 128, range(6_000, 10_001)),
        (1_000_000, "cpu", 256, range(30_000, 40_001)),
        (1_000_000, "cuda", 512, range(30_000, 40_001)),
    ],
)
def test_what_auto_chooses(n_pairs: int, device: str, d_model: int, vocabulary: range) -> None:
    config = resolved(n_pairs, device)
    assert config.model.d_model == d_model
    assert config.data.vocab_size in vocabulary


@pytest.mark.parametrize(
    ("preset", "device", "hours", "d_model"),
    [
        ("auto", "cpu", 1.0, 128),
        ("auto", "cpu", 24.0, 256),
        ("auto", "cpu", 0.0, 256),
        ("auto", "cuda", 1.0, 512),
        ("small", "cpu", 1.0, 256),
    ],
)
def test_a_cpu_trains_no_larger_model_than_it_has_time_for(
    preset: str, device: str, hours: float, d_model: int
) -> None:
    facts = Facts(2_000_000, device, max_time=3600 * hours)
    width, *_ = [d for d in decide(preset, facts) if d.name == "model.d_model"]
    assert width.value == d_model
    assert ("in 1 h" in width.reason) == (d_model == 128)


@pytest.mark.parametrize(
    ("preset", "n_pairs", "dropout"),
    [("auto", 9_999, 0.3), ("auto", 29_000, 0.2), ("base", 29_000, 0.3), ("base", 2_000_000, 0.1)],
)
def test_a_small_model_of_much_data_needs_less_noise(
    preset: str, n_pairs: int, dropout: float
) -> None:
    assert resolved(n_pairs, preset=preset).model.dropout == dropout


def test_the_less_data_the_more_passes_come_before_bpe_dropout() -> None:
    passes = {n: resolved(n).data.bpe_dropout_after for n in (5_000, 29_000, 100_000, 999_999)}
    assert passes == {5_000: 24, 29_000: 10, 100_000: 5, 999_999: 3}
    assert resolved(1_000_000).data.bpe_dropout == 0


@pytest.mark.parametrize("n_pairs", [5_000, 29_000, 2_000_000])
def test_a_tiny_model_on_a_cpu_learns_from_2048_tokens_on_any_number_of_cores(n_pairs: int) -> None:
    for n_threads in (1, 2, 3, 4, 8, 64):
        facts = Facts(n_pairs, "cpu", n_threads=n_threads)
        config = apply(RunConfig(), decide("tiny", facts))
        assert config.data.batch_tokens * config.optim.accumulate == 2048
        assert config.data.batch_tokens >= 256


def test_smaller_updates_are_validated_after_as_many_tokens() -> None:
    def tokens(preset: str) -> list[int]:
        config = resolved(29_000, preset=preset)
        size = config.data.batch_tokens * config.optim.accumulate
        return [size * n for n in (config.train.validate_every, config.train.cooldown)]

    assert tokens("tiny") == tokens("small") == [500 * 4096, 1000 * 4096]


@pytest.mark.parametrize(
    ("preset", "device", "n_pairs", "tokens", "warmup"),
    [
        ("tiny", "cpu", 29_000, 2048, 400),
        ("small", "cpu", 29_000, 2048, 400),
        ("small", "cpu", 2_000_000, 2048, 4000),
        ("small", "cuda", 29_000, 16_384, 1000),
        ("base", "cpu", 29_000, 4096, 1000),
    ],
)
def test_on_a_cpu_smaller_models_have_smaller_updates_and_a_shorter_warm_up(
    preset: str, device: str, n_pairs: int, tokens: int, warmup: int
) -> None:
    config = resolved(n_pairs, device, preset)
    assert config.data.batch_tokens * config.optim.accumulate == tokens
    assert config.optim.warmup_steps == warmup


def test_a_named_preset_fixes_the_size_of_the_model() -> None:
    widths = [resolved(29_000, preset=p).model.d_model for p in ("tiny", "small", "base", "big")]
    assert widths == [128, 256, 512, 1024]


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize(
    ("preset", "device", "n_tokens"),
    [("base", "cuda", 16_384), ("base", "cpu", 4096), ("big", "cpu", 4096), ("tiny", "cpu", 2048)],
)
def test_an_update_has_as_many_tokens_in_any_number_of_processes(
    preset: str, device: str, n_tokens: int, n: int
) -> None:
    """Those that torchrun started; each has a micro-batch of its own, whatever else would be best."""
    decisions = decide(preset, Facts(2_000_000, device, n_processes=n, n_threads=2))
    config = apply(RunConfig(), decisions)
    if n > 1 or device == "cuda":
        assert config.optim.accumulate == n
    total = config.data.batch_tokens * config.optim.accumulate
    assert 0 <= n_tokens - total < n
    (reason,) = [d.reason for d in decisions if d.name == "optim.accumulate"]
    assert reason.startswith(f"{total} tokens an update, ")


@pytest.mark.parametrize(
    ("preset", "n_threads", "n"),
    [("tiny", 1, 1), ("tiny", 3, 2), ("tiny", 64, 8), ("base", 64, 4), ("big", 64, 1)],
)
def test_alone_on_a_cpu_no_more_processes_share_an_update_than_there_are_threads(
    preset: str, n_threads: int, n: int
) -> None:
    decisions = decide(preset, Facts(2_000_000, "cpu", n_threads=n_threads))
    assert apply(RunConfig(), decisions).optim.accumulate == n


@pytest.mark.parametrize(
    ("d_model", "like"),
    [(64, "tiny"), (128, "tiny"), (160, "small"), (512, "base"), (768, "big"), (2048, "big")],
)
def test_a_model_is_trained_further_as_one_of_its_width_is_trained(d_model: int, like: str) -> None:
    facts = Facts(29_000, "cpu", d_model=d_model)
    auto, asked = (apply(RunConfig(), decide(p, facts)) for p in ("auto", like))
    assert (auto.optim, auto.data, auto.train) == (asked.optim, asked.data, asked.train)
