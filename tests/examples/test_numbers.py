"""The corpus of `examples/numbers` is right, reproducible, and does not train on its test."""

import doctest
import importlib.util
import random
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "numbers" / "generate.py"


def load_program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("numbers_example", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_program()


@pytest.fixture(scope="module")
def corpus():
    return generate.build_corpus(seed=1)


# An independent reading of the words, written out by hand: the other direction, and other tables.
READ_DE = {
    "null": 0, "ein": 1, "eins": 1, "einen": 1, "zwei": 2, "drei": 3, "vier": 4, "fünf": 5,
    "sechs": 6, "sieben": 7, "acht": 8, "neun": 9, "zehn": 10, "elf": 11, "zwölf": 12,
    "dreizehn": 13, "vierzehn": 14, "fünfzehn": 15, "sechzehn": 16, "siebzehn": 17,
    "achtzehn": 18, "neunzehn": 19, "zwanzig": 20, "dreißig": 30, "vierzig": 40, "fünfzig": 50,
    "sechzig": 60, "siebzig": 70, "achtzig": 80, "neunzig": 90,
}  # fmt: skip
READ_EN = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7,
    "eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20,
    "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip


def read_german(word: str) -> int:
    """Read a number; KeyError if the word is none."""
    for name, size in (("tausend", 1000), ("hundert", 100)):
        head, found, rest = word.partition(name)
        if found:
            return read_german(head) * size + (read_german(rest) if rest else 0)
    unit, found, tens = word.partition("und")
    return READ_DE[unit] + READ_DE[tens] if found else READ_DE[word]


def read_english(words: str) -> int:
    total = group = 0
    for word in words.replace("-", " ").replace(" and ", " ").split():
        if word == "thousand":
            total, group = group * 1000, 0
        elif word == "hundred":
            group *= 100
        else:
            group += READ_EN[word]
    return total + group


def german_numbers(text: str) -> set[int]:
    """Collect the numbers in a sentence, in words or figures, and the groups in them."""
    numbers = set()
    for word in re.findall(r"\w+", text):
        for part in (word, *word.split("tausend")):
            try:
                numbers.add(int(part) if part.isdecimal() else read_german(part))
            except KeyError:
                continue  # another word, or nothing on one side of "tausend"
    return numbers


def test_the_examples_in_the_docstrings_are_true():
    assert doctest.testmod(generate).failed == 0


@pytest.mark.parametrize(
    ("n", "en", "de"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (6, "six", "sechs"),
        (16, "sixteen", "sechzehn"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (66, "sixty-six", "sechsundsechzig"),
        (77, "seventy-seven", "siebenundsiebzig"),
        (100, "one hundred", "einhundert"),
        (101, "one hundred and one", "einhunderteins"),
        (342, "three hundred and forty-two", "dreihundertzweiundvierzig"),
        (1000, "one thousand", "eintausend"),
        (1005, "one thousand and five", "eintausendfünf"),
        (1100, "one thousand one hundred", "eintausendeinhundert"),
        (12_012, "twelve thousand and twelve", "zwölftausendzwölf"),
        (21_000, "twenty-one thousand", "einundzwanzigtausend"),
        (101_001, "one hundred and one thousand and one", "einhunderteintausendeins"),
        (
            999_999,
            "nine hundred and ninety-nine thousand nine hundred and ninety-nine",
            "neunhundertneunundneunzigtausendneunhundertneunundneunzig",
        ),
    ],
)
def test_numbers_are_said_as_by_hand(n, en, de):
    assert (generate.english(n), generate.german(n)) == (en, de)


@pytest.mark.parametrize(
    ("day", "style", "en", "der", "am"),
    [
        (
            date(1987, 3, 3),
            "mixed",
            "the third of March 1987",
            "der dritte März 1987",
            "am dritten März 1987",
        ),
        (
            date(1987, 3, 3),
            "words",
            "the third of March nineteen eighty-seven",
            "der dritte März neunzehnhundertsiebenundachtzig",
            "am dritten März neunzehnhundertsiebenundachtzig",
        ),
        (date(1987, 3, 3), "figures", "March 3, 1987", "der 3. März 1987", "am 3. März 1987"),
        (
            date(2024, 1, 1),  # was a Monday
            "weekday",
            "Monday, the first of January",
            "Montag, der erste Januar",
            "am Montag, dem ersten Januar",
        ),
        (
            date(1901, 10, 7),
            "words",
            "the seventh of October nineteen oh one",
            "der siebte Oktober neunzehnhunderteins",
            "am siebten Oktober neunzehnhunderteins",
        ),
        (
            date(2007, 12, 31),
            "words",
            "the thirty-first of December two thousand and seven",
            "der einunddreißigste Dezember zweitausendsieben",
            "am einunddreißigsten Dezember zweitausendsieben",
        ),
        (
            date(2020, 2, 20),
            "words",
            "the twentieth of February twenty twenty",
            "der zwanzigste Februar zweitausendzwanzig",
            "am zwanzigsten Februar zweitausendzwanzig",
        ),
    ],
)
def test_dates_are_said_as_by_hand(day, style, en, der, am):
    assert generate.english_date(day, style) == en
    assert generate.german_date(day, style) == der
    assert generate.german_date(day, style, on=True) == am


def test_ranks_are_said_as_by_hand():
    english = (
        "first second third fourth fifth eighth ninth twelfth thirteenth twentieth thirty-first"
    )
    german = "erste zweite dritte vierte fünfte achte neunte zwölfte dreizehnte zwanzigste"
    ranks = (1, 2, 3, 4, 5, 8, 9, 12, 13, 20, 31)
    assert [generate.english_ordinal(n) for n in ranks] == english.split(" ")
    assert [generate.german_ordinal(n) for n in ranks] == [*german.split(" "), "einunddreißigste"]


@pytest.mark.parametrize(
    ("hour", "minute", "en", "de"),
    [
        (7, 0, "seven o'clock", "sieben Uhr"),
        (1, 0, "one o'clock", "ein Uhr"),
        (7, 30, "half past seven", "halb acht"),
        (12, 30, "half past twelve", "halb eins"),
        (8, 45, "a quarter to nine", "Viertel vor neun"),
        (12, 15, "a quarter past twelve", "Viertel nach zwölf"),
        (10, 20, "twenty past ten", "zwanzig nach zehn"),
        (12, 50, "ten to one", "zehn vor eins"),
        (1, 1, "one minute past one", "eine Minute nach eins"),
        (6, 39, "twenty-one minutes to seven", "einundzwanzig Minuten vor sieben"),
    ],
)
def test_times_are_said_as_by_hand(hour, minute, en, de):
    assert generate.english_time(hour, minute) == en
    assert generate.german_time(hour, minute) == de


def test_reading_a_number_back_gives_the_number():
    numbers = [*range(10_000), *random.Random(1).sample(range(10_000, 1_000_000), 5_000)]
    assert [read_german(generate.german(n)) for n in numbers] == numbers
    assert [read_english(generate.english(n)) for n in numbers] == numbers


def test_different_numbers_sound_different():
    for say in (generate.english, generate.german):
        assert len({say(n) for n in range(1000)}) == 1000


def test_different_dates_and_times_sound_different():
    days = [date.fromordinal(date(1999, 1, 1).toordinal() + i) for i in range(1000)]
    clock = [(hour, minute) for hour in range(1, 13) for minute in range(60)]
    for style in ("words", "mixed", "figures"):
        assert len({generate.english_date(day, style) for day in days}) == len(days)
        assert len({generate.german_date(day, style) for day in days}) == len(days)
    for say in (generate.english_time, generate.german_time):
        assert len({say(*time) for time in clock}) == len(clock)


def test_the_parts_have_their_sizes(corpus):
    assert {part: len(pairs) for part, pairs in corpus.items()} == generate.SIZES


def test_no_sentence_comes_twice(corpus):
    sentences = [pair.en for pairs in corpus.values() for pair in pairs]
    assert len(set(sentences)) == len(sentences)


def test_a_sentence_has_one_translation_whatever_the_seed(corpus):
    translation = {}
    for pairs in (*corpus.values(), *generate.build_corpus(seed=2).values()):
        for pair in pairs:
            assert translation.setdefault(pair.en, pair.de) == pair.de


def test_one_euro_is_inflected_but_no_other_amount():
    rng = random.Random(1)
    prices = {pair.en: pair.de for pair in (generate.draw_price(rng) for _ in range(20_000))}
    assert prices["one euro"] == "ein Euro"
    assert prices["it costs one euro"] == "es kostet einen Euro"
    assert prices["it costs forty-two euros"] == "es kostet zweiundvierzig Euro"
    assert [en for en, de in prices.items() if "einen" in de] == ["it costs one euro"]
    assert not any("eins " in de for de in prices.values())


def test_sentences_with_a_time_are_put_as_by_hand():
    rng = random.Random(1)
    german = {pair.en: pair.de for pair in (generate.draw_time(rng) for _ in range(20_000))}
    assert german["half past seven"] == "halb acht"
    assert german["it is one o'clock at night"] == "es ist ein Uhr nachts"
    assert german["the train leaves at half past seven"] == "der Zug fährt um halb acht ab"
    assert german["the film starts at half past twelve"] == "der Film fängt um halb eins an"
    assert (
        german["we meet on Monday at half past nine in the evening"]
        == "wir treffen uns am Montag um halb zehn abends"
    )


@pytest.mark.parametrize(
    ("en", "de"),
    [
        (r"the third of March .*", r"der dritte März .*"),
        (r"on the third of .*", r"am dritten .*"),
        (r"on March \d+, \d+", r"am \d+\. März \d+"),
        (r"today is Sunday, the eleventh of \w+", r"heute ist Sonntag, der elfte \w+"),
        (r"I was born on the third of .* \d+", r"ich wurde am dritten .* \d+ geboren"),
        (r"the ship sailed on Friday, the .*", r"das Schiff fuhr am Freitag, dem \w+ten \w+ ab"),
    ],
)
def test_sentences_with_a_date_are_put_as_by_hand(en, de):
    rng = random.Random(1)
    pairs = [generate.draw_date(rng) for _ in range(10_000)]
    translations = [pair.de for pair in pairs if re.fullmatch(en, pair.en)]
    assert translations
    assert all(re.fullmatch(de, translation) for translation in translations)


def test_train_contains_no_held_out_item_and_the_others_do(corpus):
    held_out = {
        part: [any(map(generate.is_held_out, pair.items)) for pair in pairs]
        for part, pairs in corpus.items()
    }
    assert not any(held_out["train"])
    assert all(held_out["valid"])
    assert all(held_out["test"])


def test_no_held_out_number_is_read_in_train(corpus):
    # From the German text alone: neither in words nor in figures, neither whole nor as a group.
    found = set().union(*(german_numbers(pair.de) for pair in corpus["train"]))
    compounds = {("number", n) for n in found if ("number", n) in generate.number_items(n)}
    assert len(compounds) > 3_000
    assert not any(map(generate.is_held_out, compounds))


@pytest.mark.parametrize("language", ["en", "de"])
def test_every_part_of_a_held_out_sentence_is_in_train(corpus, language):
    def parts(*names):
        text = "\n".join(vars(pair)[language] for name in names for pair in corpus[name])
        return set(re.split(r"tausend|hundert|und|\W+", text))

    assert parts("valid", "test") <= parts("train")


def test_every_half_hour_can_be_learnt(corpus):
    # "halb acht" cannot be composed from "half past" and "seven": each hour must be seen.
    sentences = "\n".join(pair.en for pair in corpus["train"])
    for hour in range(1, 13):
        assert len(re.findall(rf"half past {generate.english(hour)}\b", sentences)) >= 20


def test_about_the_promised_share_is_held_out():
    items = [("number", n) for n in range(101, 1000) if n % 100]
    share = sum(map(generate.is_held_out, items)) / len(items)
    assert share == pytest.approx(generate.HELD_OUT_PERCENT / 100, abs=0.03)


def test_the_first_questions_of_the_readme_are_held_out():
    assert generate.is_held_out(("number", 342))
    assert generate.is_held_out(("time", 7, 30, ""))


def test_the_program_writes_the_same_bytes_again(tmp_path):
    for folder, hash_seed in (("a", "1"), ("b", "2")):
        subprocess.run(
            [sys.executable, PROGRAM, "--out", tmp_path / folder, "--seed", "7"],
            check=True,
            capture_output=True,
            env={"PYTHONHASHSEED": hash_seed, "PYTHONIOENCODING": "ascii"},
        )
    names = {f"{part}.{language}" for part in generate.SIZES for language in ("en", "de")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names
    for name in names:
        written = (tmp_path / "a" / name).read_bytes()
        assert written == (tmp_path / "b" / name).read_bytes()
        assert written.count(b"\n") == generate.SIZES[name.partition(".")[0]]
        assert written.endswith(b"\n")
        assert b"\r" not in written


def test_the_files_hold_the_corpus(tmp_path, corpus):
    generate.write_corpus(corpus, tmp_path)
    for part, pairs in corpus.items():
        for language in ("en", "de"):
            lines = (tmp_path / f"{part}.{language}").read_bytes().decode().split("\n")
            assert lines == [*(vars(pair)[language] for pair in pairs), ""]


def test_another_seed_draws_other_sentences(corpus):
    assert generate.build_corpus(seed=2)["test"] != corpus["test"]


def test_a_folder_that_cannot_be_made_is_the_users_mistake(tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit, match="2"):
        generate.main(["--out", str(tmp_path / "file")])
    assert "--out" in capsys.readouterr().err
