"""The walk-through computes the published numbers, and what the layers themselves compute."""

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from seq2seq.attention import causal_mask
from seq2seq.batch import Batch
from seq2seq.model import Transformer

SCRIPT = Path(__file__).parents[2] / "examples" / "by_hand" / "transformer.py"


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("by_hand_transformer", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


by_hand = load_script()


def equal_to_four_decimals(actual: torch.Tensor, published: list) -> bool:
    return (actual - torch.tensor(published)).abs().max().item() <= 0.5001e-4


@pytest.fixture(scope="module")
def trained() -> tuple[Transformer, list[str], Batch, list[float]]:
    vocab = by_hand.vocabulary([text for pair in by_hand.PAIRS for text in pair])
    batch = by_hand.decoder_input(vocab)
    model, losses = by_hand.train(batch, vocab)
    return model, vocab, batch, losses


def test_similarity_is_that_of_exact_arithmetic() -> None:
    # shiny · (Hello, shiny, sun), by hand: 0.1802 + 0.0748 + 0.5292 and so on.
    exact = [math.exp(score) for score in (0.7842, 1.3569, 1.2487)]
    weights = [e / sum(exact) for e in exact]
    columns = zip(*by_hand.E_GREETING.tolist(), strict=True)
    context = [sum(w * x for w, x in zip(weights, column, strict=True)) for column in columns]

    scores, printed_weights, printed_context = by_hand.similarity()

    assert equal_to_four_decimals(scores, [[0.7842, 1.3569, 1.2487]])
    assert equal_to_four_decimals(printed_weights, [weights])
    assert equal_to_four_decimals(printed_context, [context])
    # The text in circulation rounded its weights: near, but not the same.
    in_circulation = torch.tensor([[0.3992, 0.3858, 0.8610]])
    assert 0.5e-4 < (printed_context - in_circulation).abs().max() < 5e-4


def test_one_head_gives_the_published_vectors() -> None:
    _, _, context = by_hand.one_head()
    assert equal_to_four_decimals(
        context,
        [
            [0.2996, 0.8053],
            [0.3061, 0.8210],
            [0.3058, 0.8203],
            [0.2948, 0.7939],
            [0.2927, 0.7891],
            [0.2990, 0.8040],
        ],
    )


def test_causal_head_gives_the_published_vectors_and_weights() -> None:
    context, weights = by_hand.causal_head()
    assert equal_to_four_decimals(
        context,
        [
            [-0.0739, 0.0713],
            [-0.0748, 0.0703],
            [-0.0749, 0.0702],
            [-0.0760, 0.0685],
            [-0.0763, 0.0679],
            [-0.0754, 0.0693],
        ],
    )
    assert equal_to_four_decimals(weights[1], [0.5517, 0.4483, 0, 0, 0, 0])
    assert equal_to_four_decimals(weights[5], [0.1935, 0.1663, 0.1666, 0.1542, 0.1666, 0.1529])


def test_two_heads_give_the_published_vectors() -> None:
    _, out = by_hand.two_heads()
    assert equal_to_four_decimals(
        out,
        [
            [0.3190, 0.4858],
            [0.2943, 0.3897],
            [0.2856, 0.3593],
            [0.2693, 0.3873],
            [0.2639, 0.3928],
            [0.2575, 0.4028],
        ],
    )


def test_positions_follow_the_formula_and_add_up_to_what_the_embedding_gives() -> None:
    words, ids = by_hand.tokens_and_ids(by_hand.THRONES)
    embedding, x = by_hand.embeddings(words, ids)
    table, with_positions = by_hand.positions(words, x)

    assert table.shape == (7, 6)
    for pos in range(7):
        for i in range(3):
            angle = pos / 10_000 ** (2 * i / 6)
            assert table[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[pos, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    torch.testing.assert_close(with_positions, embedding(ids))


def test_encoder_layer_taken_apart_equals_the_layer() -> None:
    words = by_hand.THRONES.split(" ")
    torch.manual_seed(0)
    x = torch.randn(1, 7, 6)
    layer, normed = by_hand.add_and_norm(words, x)
    _, out = by_hand.feed_forward(words, layer, normed)
    torch.testing.assert_close(out, layer(x, by_hand.see_all(7, 7)))


def test_decoder_layer_taken_apart_equals_the_layer(trained: tuple) -> None:
    model, vocab, _, _ = trained
    memory, weights, states = by_hand.cross_attention(model, vocab, *by_hand.PAIRS[0])
    _, tgt_in = by_hand.framed(*by_hand.PAIRS[0], vocab)
    n = tgt_in.size(1)
    mask = causal_mask(n, n, tgt_in.device)

    torch.testing.assert_close(states, model.decoder[0](model.tgt_embedding(tgt_in), memory, mask))
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, n))
    torch.testing.assert_close(model.output(states), model.decode(tgt_in, memory))


def test_training_learns_and_the_loop_ends_in_the_end_token(trained: tuple) -> None:
    model, vocab, batch, losses = trained
    assert losses[-1] < 0.05 < 1 < losses[0]
    assert (model(batch.src, batch.tgt_in).argmax(-1) == batch.tgt_out)[batch.tgt_out != 0].all()
    assert by_hand.loop(model, vocab) == [target for _, target in by_hand.PAIRS]


def test_the_whole_script_runs_and_prints_plain_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    by_hand.main()
    printed = capsys.readouterr().out
    assert printed.isascii()
    for section in range(1, 15):
        assert f"\n{section}. " in printed
    assert max(len(line) for line in printed.split("\n")) <= 100


def test_importing_the_script_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    load_script()
    assert capsys.readouterr().out == ""
    assert "by_hand_transformer" not in sys.modules
