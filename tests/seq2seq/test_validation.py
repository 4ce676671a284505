from seq2seq.corpus import Corpus
from seq2seq.validation import hold_out
from tokenizer.base import Tokenizer


def test_held_out_pairs_are_the_same_every_time_and_leave_the_corpus(
    small_corpus: Corpus, small_tokenizer: Tokenizer, pairs: list[tuple[str, str]]
) -> None:
    rest, held = hold_out(small_corpus, small_tokenizer, 8, seed=1)
    again, held_again = hold_out(small_corpus, small_tokenizer, 8, seed=1)
    _, other = hold_out(small_corpus, small_tokenizer, 8, seed=2)
    assert held.src == held_again.src != other.src
    assert len(rest) == len(again) == len(small_corpus) - 8
    kept = small_tokenizer.decode_batch([rest[i].sides()[0] for i in range(len(rest))])
    assert sorted([*kept, *held.src]) == sorted(s for s, _ in pairs)
    assert set(zip(held.src, held.tgt, strict=True)) <= set(pairs)


def test_at_most_a_twentieth_is_held_out(small_corpus: Corpus, small_tokenizer: Tokenizer) -> None:
    assert len(hold_out(small_corpus, small_tokenizer, 1000, 1)[1].src) == len(small_corpus) // 20
