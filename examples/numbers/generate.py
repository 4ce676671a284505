"""Write a small parallel corpus: English numbers, dates and clock times, and their German.

    python examples/numbers/generate.py [--out examples/numbers/data] [--seed 1]

    three hundred and forty-two                      dreihundertzweiundvierzig
    I was born on the third of March 1987            ich wurde am dritten März 1987 geboren
    the train leaves at half past seven              der Zug fährt um halb acht ab

The two languages disagree just enough to need a translation model: German says the units before
the tens, writes a number as one word, inflects ordinals, counts the half hour towards the next
hour, and ends the sentence with a part of its verb. Yet each sentence has exactly one right answer.

The test asks for understanding, not for memory. Of all number compounds, dates and times, 15 % are
*held out*: each sentence of validation and test contains such an item, no sentence of training
does. The parts of the item (`three hundred`, `forty`, `two`) are all in the training data.
"""

# ruff: noqa: SIM905 (a list of words is easier to read, and to proof-read, without the quotes)

import argparse
import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

SIZES = {"train": 20_000, "valid": 500, "test": 1_000}
HELD_OUT_PERCENT = 15
# Any salt holds out 15 %. This one was looked for: it leaves the rare parts (each half hour, each
# ending of a year, and the teens of 18.. and 19.., which sound alike) in the training data, and
# holds out the first questions of the README.
SALT = 11471
FIRST_DAY, LAST_DAY = date(1801, 1, 1), date(2029, 12, 31)

UNITS_EN = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
TENS_EN = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS_EN = {
    1: "first",
    2: "second",
    3: "third",
    5: "fifth",
    8: "eighth",
    9: "ninth",
    12: "twelfth",
}
WEEKDAYS_EN = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS_EN = (
    "January February March April May June July August September October November December"
).split()

UNITS_DE = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn "
    "fünfzehn sechzehn siebzehn achtzehn neunzehn"
).split()
TENS_DE = "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
ORDINALS_DE = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
WEEKDAYS_DE = "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag".split()
MONTHS_DE = (
    "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"
).split()

# The sentences; {} is the place of the number, the date or the time.
Frame = tuple[str, str]
NUMBER_FRAMES = [("{}", "{}"), ("page {}", "Seite {}"), ("the answer is {}", "die Antwort ist {}")]
DATE_FRAMES = [("{}", "{}"), ("today is {}", "heute ist {}")]
ON_DATE_FRAMES = [
    ("on {}", "{}"),
    ("I was born on {}", "ich wurde {} geboren"),
    ("the ship sailed on {}", "das Schiff fuhr {} ab"),
]
TIME_FRAMES = [
    ("{}", "{}"),
    ("it is {}", "es ist {}"),
    ("we meet at {}", "wir treffen uns um {}"),
    ("the train leaves at {}", "der Zug fährt um {} ab"),
    ("the film starts at {}", "der Film fängt um {} an"),
    *(
        (f"we meet on {en} at {{}}", f"wir treffen uns am {de} um {{}}")
        for en, de in zip(WEEKDAYS_EN, WEEKDAYS_DE, strict=True)
    ),
]

DATE_STYLES = ("weekday", "words", "mixed", "figures")

# A part of the day, its German, and the hours that it goes with.
DAY_PARTS = [
    ("", "", range(1, 13)),
    ("in the morning", "morgens", range(1, 12)),
    ("in the afternoon", "nachmittags", range(1, 6)),
    ("in the evening", "abends", range(6, 12)),
    ("at night", "nachts", [10, 11, 12, 1, 2, 3, 4]),
]

# What can be held out: ("number", 342), ("date", 3, 3, 1987), ("day", "Monday", 3, 3) or
# ("time", 7, 30, "in the morning").
Item = tuple[str | int, ...]


@dataclass(frozen=True)
class Pair:
    """A sentence, its translation, and the items in it that could be held out."""

    en: str
    de: str
    items: tuple[Item, ...]


def is_held_out(item: Item) -> bool:
    """Decide by a hash whether training must not see the item, now or with any other seed.

    >>> [n for n in range(331, 351) if is_held_out(("number", n))]
    [333, 336, 337, 342, 343, 349, 350]
    """
    digest = hashlib.sha256(f"{SALT} {item}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def number_items(n: int) -> tuple[Item, ...]:
    """List the compounds in a number: itself and its groups of three digits, unless small or round.

    >>> number_items(342_506)
    (('number', 342506), ('number', 342), ('number', 506))
    >>> number_items(7_012), number_items(7_000), number_items(700), number_items(70)
    ((('number', 7012),), (), (), ())
    """
    numbers = (n, *divmod(n, 1000)) if n >= 1000 else (n,)
    return tuple(("number", m) for m in numbers if m > 100 and m % (100 if m < 1000 else 1000))


def english(n: int) -> str:
    """Say a number below a million.

    >>> english(342), english(1005), english(20_000)
    ('three hundred and forty-two', 'one thousand and five', 'twenty thousand')
    """
    if n < 20:
        return UNITS_EN[n]
    if n < 100:
        return TENS_EN[n // 10] + (f"-{UNITS_EN[n % 10]}" if n % 10 else "")
    size, name = (100, "hundred") if n < 1000 else (1000, "thousand")
    head, rest = f"{english(n // size)} {name}", n % size
    if rest == 0:
        return head
    return f"{head} and {english(rest)}" if rest < 100 else f"{head} {english(rest)}"


def english_ordinal(n: int) -> str:
    """Say a rank below 100.

    >>> english_ordinal(3), english_ordinal(20), english_ordinal(31)
    ('third', 'twentieth', 'thirty-first')
    """
    if n > 20 and n % 10:
        return f"{TENS_EN[n // 10]}-{english_ordinal(n % 10)}"
    return ORDINALS_EN.get(n, english(n).replace("ty", "tie") + "th")


def english_year(year: int) -> str:
    """Say a year.

    >>> english_year(1987), english_year(1905), english_year(2005), english_year(2021)
    ('nineteen eighty-seven', 'nineteen oh five', 'two thousand and five', 'twenty twenty-one')
    """
    if 2000 <= year < 2010:
        return english(year)
    century, rest = english(year // 100), year % 100
    if rest == 0:
        return f"{century} hundred"
    return f"{century} oh {english(rest)}" if rest < 10 else f"{century} {english(rest)}"


def english_date(day: date, style: str) -> str:
    """Say a date in one of the `DATE_STYLES`.

    >>> [english_date(date(1987, 3, 3), style) for style in ("weekday", "mixed", "figures")]
    ['Tuesday, the third of March', 'the third of March 1987', 'March 3, 1987']
    """
    month = MONTHS_EN[day.month - 1]
    nth = f"the {english_ordinal(day.day)} of {month}"
    return {
        "weekday": f"{WEEKDAYS_EN[day.weekday()]}, {nth}",
        "words": f"{nth} {english_year(day.year)}",
        "mixed": f"{nth} {day.year}",
        "figures": f"{month} {day.day}, {day.year}",
    }[style]


def english_time(hour: int, minute: int) -> str:
    """Say the time of a twelve-hour clock.

    >>> english_time(7, 30), english_time(8, 45), english_time(12, 59)
    ('half past seven', 'a quarter to nine', 'one minute to one')
    """
    if minute == 0:
        return f"{english(hour)} o'clock"
    if minute == 30:
        return f"half past {english(hour)}"
    distance = min(minute, 60 - minute)
    amount = "a quarter" if distance == 15 else english(distance)
    if distance % 5:
        amount += " minute" if distance == 1 else " minutes"
    if minute < 30:
        return f"{amount} past {english(hour)}"
    return f"{amount} to {english(hour % 12 + 1)}"


def german(n: int, one: str = "eins") -> str:
    """Say a number below a million.

    Args:
        n: The number.
        one: The word for a one at the end: "eins" in counting, "ein" or "eine" before a noun.

    >>> german(342), german(1001), german(21_101, one="ein")
    ('dreihundertzweiundvierzig', 'eintausendeins', 'einundzwanzigtausendeinhundertein')
    """
    if n == 1:
        return one
    if n < 20:
        return UNITS_DE[n]
    if n < 100:
        return (f"{german(n % 10, one='ein')}und" if n % 10 else "") + TENS_DE[n // 10]
    size, name = (100, "hundert") if n < 1000 else (1000, "tausend")
    return german(n // size, one="ein") + name + (german(n % size, one) if n % size else "")


def german_ordinal(n: int) -> str:
    """Say a rank below 100, as it follows "der".

    >>> german_ordinal(3), german_ordinal(14), german_ordinal(31)
    ('dritte', 'vierzehnte', 'einunddreißigste')
    """
    return ORDINALS_DE.get(n, german(n) + ("te" if n < 20 else "ste"))


def german_year(year: int) -> str:
    """Say a year: before 2000 in hundreds.

    >>> german_year(1900), german_year(1987), german_year(2021)
    ('neunzehnhundert', 'neunzehnhundertsiebenundachtzig', 'zweitausendeinundzwanzig')
    """
    if year >= 2000:
        return german(year)
    century, rest = divmod(year, 100)
    return f"{german(century)}hundert" + (german(rest) if rest else "")


def german_date(day: date, style: str, on: bool = False) -> str:
    """Say a date in one of the `DATE_STYLES`, or when something happens *on* that date (dative).

    >>> [german_date(date(1987, 3, 3), style) for style in ("weekday", "mixed", "figures")]
    ['Dienstag, der dritte März', 'der dritte März 1987', 'der 3. März 1987']
    >>> [german_date(date(1987, 3, 3), style, on=True) for style in ("weekday", "mixed")]
    ['am Dienstag, dem dritten März', 'am dritten März 1987']
    """
    weekday, month = WEEKDAYS_DE[day.weekday()], MONTHS_DE[day.month - 1]
    nth = f"{german_ordinal(day.day)}{'n' if on else ''} {month}"
    article = "am" if on else "der"
    return {
        "weekday": f"am {weekday}, dem {nth}" if on else f"{weekday}, der {nth}",
        "words": f"{article} {nth} {german_year(day.year)}",
        "mixed": f"{article} {nth} {day.year}",
        "figures": f"{article} {day.day}. {month} {day.year}",
    }[style]


def german_time(hour: int, minute: int) -> str:
    """Say the time of a twelve-hour clock.

    >>> german_time(7, 30), german_time(8, 45), german_time(12, 59)
    ('halb acht', 'Viertel vor neun', 'eine Minute vor eins')
    """
    if minute == 0:
        return f"{german(hour, one='ein')} Uhr"
    if minute == 30:
        return f"halb {german(hour % 12 + 1)}"
    distance = min(minute, 60 - minute)
    amount = "Viertel" if distance == 15 else german(distance, one="eine")
    if distance % 5:
        amount += " Minute" if distance == 1 else " Minuten"
    if minute < 30:
        return f"{amount} nach {german(hour)}"
    return f"{amount} vor {german(hour % 12 + 1)}"


def sentence(rng: random.Random, frames: Sequence[Frame], en: str, de: str, *items: Item) -> Pair:
    """Say a phrase, and its translation, in one of the frames."""
    frame_en, frame_de = rng.choice(frames)
    return Pair(frame_en.format(en), frame_de.format(de), items)


def draw_int(rng: random.Random) -> int:
    """Draw a number below a million: short and round ones often, as in life."""
    thousands, rest = (rng.randrange(rng.choice((1, 20, 100, 1000, 1000, 1000))) for _ in range(2))
    return rng.choice((0, thousands)) * 1000 + rest


def draw_number(rng: random.Random) -> Pair:
    """Draw a sentence with a number."""
    n = draw_int(rng)
    return sentence(rng, NUMBER_FRAMES, english(n), german(n), *number_items(n))


def draw_price(rng: random.Random) -> Pair:
    """Draw an amount of euros, or what something costs (accusative)."""
    n, costs = draw_int(rng), rng.random() < 0.5
    en = f"{english(n)} {'euro' if n == 1 else 'euros'}"
    # Only "ein Euro" itself is inflected; "einhundertein Euro" is not.
    de = f"{german(n, one='einen' if costs and n == 1 else 'ein')} Euro"
    frame = ("it costs {}", "es kostet {}") if costs else ("{}", "{}")
    return sentence(rng, [frame], en, de, *number_items(n))


def draw_date(rng: random.Random) -> Pair:
    """Draw a date, or what happens on it."""
    day = date.fromordinal(rng.randint(FIRST_DAY.toordinal(), LAST_DAY.toordinal()))
    style, on = rng.choice(DATE_STYLES), rng.random() < 0.5
    year = number_items(day.year)[:1]
    if style == "weekday":
        items: tuple[Item, ...] = (("day", WEEKDAYS_EN[day.weekday()], day.day, day.month),)
    else:
        items = (("date", day.day, day.month, day.year), *year)
        if any(map(is_held_out, year)):
            # In figures a year is copied, not composed: an unseen one would test nothing but luck.
            style = "words"
    frames = ON_DATE_FRAMES if on else DATE_FRAMES
    return sentence(rng, frames, english_date(day, style), german_date(day, style, on), *items)


def draw_time(rng: random.Random) -> Pair:
    """Draw a time, or what happens then."""
    part_en, part_de, hours = rng.choice(DAY_PARTS)
    hour = rng.choice(hours)
    minute = rng.choice((0, 30, rng.randrange(0, 60, 5), rng.randrange(60)))
    en = f"{english_time(hour, minute)} {part_en}".rstrip()
    de = f"{german_time(hour, minute)} {part_de}".rstrip()
    return sentence(rng, TIME_FRAMES, en, de, ("time", hour, minute, part_en))


def draw_pairs(rng: random.Random) -> Iterator[Pair]:
    """Yield the numbers below 100, then sentences of all kinds without end; none comes twice."""
    seen = {english(n) for n in range(100)}
    yield from (Pair(english(n), german(n), ()) for n in range(100))
    kinds = (draw_number, draw_number, draw_price, draw_date, draw_date, draw_time, draw_time)
    while True:
        pair = rng.choice(kinds)(rng)
        if pair.en not in seen:
            seen.add(pair.en)
            yield pair


def build_corpus(seed: int) -> dict[str, list[Pair]]:
    """Draw the three parts, as large as `SIZES` says: a function of the seed alone.

    A sentence with a held-out item goes to valid or test, any other to train.
    """
    corpus: dict[str, list[Pair]] = {part: [] for part in SIZES}
    for pair in draw_pairs(random.Random(seed)):
        unseen = any(map(is_held_out, pair.items))
        for part in ("valid", "test") if unseen else ("train",):
            if len(corpus[part]) < SIZES[part]:
                corpus[part].append(pair)
                break
        if all(len(corpus[part]) == SIZES[part] for part in SIZES):
            break
    return corpus


def write_corpus(corpus: dict[str, list[Pair]], folder: Path) -> None:
    """Write `train.en`, `train.de` and so on: UTF-8, a sentence a line, alike on any system."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, pairs in corpus.items():
        (folder / f"{part}.en").write_bytes("".join(f"{pair.en}\n" for pair in pairs).encode())
        (folder / f"{part}.de").write_bytes("".join(f"{pair.de}\n" for pair in pairs).encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Write numbers, dates and times in two languages.")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        default=Path(__file__).parent / "data",
        help="where to put train, valid and test (default: data, next to this program)",
    )
    parser.add_argument("--seed", type=int, default=1, help="another seed, other sentences")
    args = parser.parse_args(argv)
    corpus = build_corpus(args.seed)
    try:
        write_corpus(corpus, args.out)
    except OSError as error:
        parser.error(f"argument --out: {error}")
    for part, pairs in corpus.items():
        print(f"{args.out / part}.en, .de: {len(pairs):,} pairs")


if __name__ == "__main__":
    main()
