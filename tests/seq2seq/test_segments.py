import pytest

from seq2seq.segments import split_long
from tokenizer.base import Tokenizer

LONG_TEXTS = [
    "the dog runs. " * 40,
    "the dog sees the man " * 30,
    "One. Two! Three? Four… five。six！seven " * 8,
    "x" * 1000,
    "ภาษาไทยไม่มีช่องว่าง🙂" * 20,
    "你好。" * 100,
    "a" * 50 + " " + "the man. " * 20 + "b" * 50,
]


@pytest.mark.parametrize("text", LONG_TEXTS)
@pytest.mark.parametrize("longest", [7, 20, 64])
def test_a_long_line_is_cut_and_nothing_is_lost(
    text: str, longest: int, small_tokenizer: Tokenizer
) -> None:
    segments = split_long(text, small_tokenizer, longest)
    assert all(0 < len(ids) <= longest for ids in segments)
    whole = small_tokenizer.decode([i for ids in segments for i in ids])
    assert "".join(whole.split()) == "".join(text.split())
    alone = [small_tokenizer.decode(ids) for ids in segments]
    assert "\ufffd" not in "".join(alone)  # no character is torn


def test_spaces_between_sentences_do_not_cut_them(small_tokenizer: Tokenizer) -> None:
    sentence = "the big dog sees the man."
    longest = 2 * len(small_tokenizer.encode(sentence)) + 2
    parts = split_long((" " * 12).join([sentence] * 6), small_tokenizer, longest)
    assert {small_tokenizer.decode(ids) for ids in parts} == {sentence}


def test_sentences_stay_whole_where_they_fit(small_tokenizer: Tokenizer) -> None:
    sentence = "the big dog sees the man."
    longest = 2 * len(small_tokenizer.encode(sentence)) + 2
    segments = split_long(" ".join([sentence] * 5), small_tokenizer, longest)
    texts = [small_tokenizer.decode(ids) for ids in segments]
    assert texts == [f"{sentence} {sentence}", f"{sentence} {sentence}", sentence]


@pytest.mark.parametrize(
    "text",
    [
        "今天天气很好。我们去公园。" * 9,
        "the dog.  the man…\tthe cat! " * 20,
        "the  man\tsees " * 40,
    ],
)
def test_the_spaces_inside_a_segment_are_those_of_the_text(
    text: str, small_tokenizer: Tokenizer
) -> None:
    segments = [small_tokenizer.decode(ids) for ids in split_long(text, small_tokenizer, 64)]
    assert all(segment in text for segment in segments)
    assert any(len(segment) >= 13 for segment in segments)


@pytest.mark.parametrize(
    "sentence",
    [
        "आदमी घर जाता है।",
        "هل ذهب الرجل؟",
        "وہ گھر جاتا ہے۔",
        "He said: “Go.”",
        "他说：“走。”",
        "行く（今日。）",
        "သူ အိမ် သွားတယ်။",
        "គាត់ទៅផ្ទះ។",
        "他说：“走。』”",
    ],
)
def test_a_line_is_cut_behind_the_ends_of_its_sentences(
    sentence: str, small_tokenizer: Tokenizer
) -> None:
    between = " " if " " in sentence else ""
    longest = len(small_tokenizer.encode(sentence)) + 2
    parts = split_long(between.join([sentence] * 5), small_tokenizer, longest)
    assert {small_tokenizer.decode(ids) for ids in parts} == {sentence}
