import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from seq2seq.metrics import agreement, evaluate, tokenization_of
from tokenizer.errors import UserError

REFERENCES = [
    "The dog runs through the big house.",
    "A man, in a blue shirt, sleeps!",
    "Zwei junge Männer sehen 1,000 Hunde\u2028oder mehr.",
    "tab\there and trailing blanks  ",
    "",
]
HYPOTHESES = [
    "the dog runs through a big house .",
    "A man in a shirt sleeps!",
    "Zwei Männer sehen 1,000 Hunde\u2028oder mehr.",
    "tab\there and trailing  ",
    "something",
]


def sacrebleu(folder: Path, *options: str) -> list[dict[str, object]]:
    """What the command line of sacreBLEU says about the same lines."""
    for name, lines in (("hyp", HYPOTHESES), ("ref", REFERENCES)):
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())
    command = [sys.executable, "-m", "sacrebleu", folder / "ref", "-i", folder / "hyp", *options]
    run = subprocess.run(command, capture_output=True, check=True)
    found = json.loads(run.stdout)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("lowercase", [False, True])
def test_scores_and_signatures_are_those_of_the_sacrebleu_command(
    lowercase: bool, tmp_path: Path
) -> None:
    options = ["-m", "bleu", "chrf", "ter", "-w", "8"]
    if lowercase:
        options += ["--lowercase", "--chrf-lowercase"]
    theirs = sacrebleu(tmp_path, *options)
    ours = evaluate(HYPOTHESES, REFERENCES, lowercase=lowercase)
    for score, other in zip(ours, theirs, strict=True):
        assert score.name == other["name"]
        assert score.value == pytest.approx(other["score"], abs=1e-6)
        assert set(score.signature.split("|")) == set(str(other["signature"]).split("|"))


@pytest.mark.parametrize("tokenize", ["13a", "none", "intl", "char", "zh"])
def test_bleu_of_the_same_text_is_100_in_every_tokenization(tokenize: str) -> None:
    lines = REFERENCES[:4]
    (score,) = evaluate(lines, lines, tokenize=tokenize, names=("bleu",))
    assert score.value == pytest.approx(100.0)
    assert f"tok:{tokenize}" in score.signature


def test_the_order_of_the_lines_does_not_matter() -> None:
    order = random.Random(0).sample(range(5), 5)
    straight = evaluate(HYPOTHESES, REFERENCES)
    mixed = evaluate([HYPOTHESES[i] for i in order], [REFERENCES[i] for i in order])
    assert [s.value for s in mixed] == pytest.approx([s.value for s in straight])


def test_nothing_in_common_is_worth_nothing() -> None:
    (bleu,) = evaluate(["x y z w"], ["a b c d"], names=("bleu",))
    assert bleu.value == 0.0


@pytest.mark.parametrize(("n", "m"), [(3, 2), (2, 3), (0, 1)])
def test_different_counts_are_refused_with_both(n: int, m: int) -> None:
    with pytest.raises(UserError, match=f"{n} translations but {m} references"):
        evaluate(["a"] * n, ["a"] * m)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(UserError, match="no sentences to score"):
        evaluate([], [])


def test_agreement_of_the_same_is_whole_and_falls_with_each_difference() -> None:
    rng = random.Random(0)
    some = [rng.choices(range(5, 300), k=rng.randint(1, 20)) for _ in range(50)]
    assert agreement(some, some) == 100
    others = [list(ids) for ids in some]
    before = 100.0
    for ids in others[:10]:
        ids[0] = 301
        assert before > (before := agreement(others, some)) > 0


def test_agreement_of_very_short_translations_is_the_share_of_equal_ones() -> None:
    assert agreement([[5]] * 200, [[5]] * 199 + [[6]]) == pytest.approx(99.5)


@pytest.mark.parametrize(
    ("line", "tokenize"),
    [
        ("Zwei Männer stehen am Herd und bereiten Essen zu.", "13a"),
        ("Kaksi miestä seisoo lieden ääressä valmistamassa ruokaa.", "13a"),
        ("Avustralyalılaştıramadıklarımızdan mısınız? Evet, öyleyiz.", "13a"),
        ("दो आदमी चूल्हे के पास खड़े हैं।", "13a"),
        ("两个男人站在炉子旁边准备食物。", "char"),
        ("二人の男性がコンロの前で料理をしています。", "char"),
        ("ผู้ชายสองคนยืนอยู่ที่เตา กำลังเตรียมอาหารกลางวัน และพูดคุยกันเรื่องงาน ก่อนจะกินข้าวด้วยกัน", "char"),
        ("dva muži", "char"),
    ],
)
def test_bleu_counts_characters_where_words_would_tell_nothing(line: str, tokenize: str) -> None:
    assert tokenization_of([line] * 10) == tokenize
    assert tokenization_of(["", line, ""]) == tokenize
    (bleu,) = evaluate([line] * 3, [line] * 3, tokenize, names=("bleu",))
    assert bleu.value == 100


def test_some_short_lines_do_not_matter_to_bleu() -> None:
    assert tokenization_of(["Zwei Männer stehen am Herd.", *["ja"] * 4]) == "13a"
    assert tokenization_of(["Zwei Männer stehen am Herd.", *["ja"] * 5]) == "char"
