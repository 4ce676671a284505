"""Text to text: windows of lines → batches sorted by length → search → text in input order.

    translator = Translator.load("model")
    translator.translate(["A dog runs."])                      # ["Ein Hund läuft."]
    for line in translator.stream(lines, beam_size=5): ...     # any iterable, constant memory

Sorting and restoring the order happen here and nowhere else. Blank lines become empty and never
reach the model; a line longer than the model can take is cut at sentence ends,
translated in parts, and joined again.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from seq2seq.batch import Example
from seq2seq.batch_translator import BatchTranslator, EngineBatches, ModelBatches
from seq2seq.checkpoint import build_model, is_for_engine, load_model, resolve
from seq2seq.config import (
    TRANSLATED_TOKENS,
    TRANSLATED_TOKENS_GPU,
    SearchConfig,
    check_search,
    set_field,
)
from seq2seq.engine import Engine
from seq2seq.engine_format import load_engine_model
from seq2seq.hardware import DTYPES, choose_device, choose_precision
from seq2seq.hypotheses import Hypothesis, falling, length_norm
from seq2seq.model import Transformer
from seq2seq.packed import pack
from seq2seq.segments import as_line, split_long, tag_ids
from seq2seq.translation import Notes, Translation, join
from seq2seq.workers import Workers
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.special import EOS, count_controls

WINDOW = 2048  # lines that are sorted by length together
LONGEST = 256  # source tokens of a segment, at most
_ONE_TEXT = "one text was given where several are expected; put it into a list"
_SCORED_SHARE = 8  # of what a GPU searches at once, one in so many is scored at once
_SENTENCES, _SENTENCES_GPU = 256, 4096  # of a batch, at most, divided by the beam


class Translator:
    """A model with its tokenizer, or several models of one tokenizer, ready to translate.

    Several models translate as one, by the mean of their probabilities (`EnsembleStep`).

    With `batch_tokens=1` every segment is computed alone, so that not even the rounding of its
    numbers depends on the other lines (`tfm translate --strict`).

    Attributes:
        name: The folders that it was loaded from.
        notes: What happened to which line; grows as lines are translated.
        precision: What it computes in, such as fp32; empty where that is not known.
        why_precision: The reason, in words, where it was chosen here.
        batch_tokens: Source tokens, times the beam, that it decodes together at most.
        batches: What translates a batch of ids.
        on_cpu: Whether its batches are made for a CPU.
        workers: Who works on its batches.
    """

    def __init__(
        self,
        model: Transformer | Engine,
        tokenizer: Tokenizer,
        batch_tokens: int | None = None,
        n_workers: int = 1,
        others: Sequence[Transformer] = (),
        name: str = "the model",
    ) -> None:
        """Wrap a model.

        Args:
            model: In the device and precision to use; ours, or one that CTranslate2 runs.
            tokenizer: Its tokenizer.
            batch_tokens: Source tokens, times the beam, that are decoded together at most, with no
                more than 256 sentences, divided by the beam; None for 4,096. On a GPU 16 times both.
            n_workers: Batches that are decoded at once: on a CPU under Linux each by a copy of this
                process (`Workers`), with a thread each.
            others: Further models of ours, of the same tokenizer, device and precision.
            name: What messages call it.

        Raises:
            UserError: When the model can take no word at all, or `batch_tokens` is no size.
        """
        if batch_tokens is not None and batch_tokens < 1:
            raise UserError(f"batch_tokens = {batch_tokens}: must be at least 1")
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.precision = self.why_precision = ""
        batches: BatchTranslator
        if isinstance(model, Engine):
            batches, self.precision = EngineBatches(model), model.precision
        else:
            batches = ModelBatches((model, *others), count_controls(tokenizer.tags))
        self.batches = batches
        self.on_cpu = batches.device.type == "cpu"
        usual = TRANSLATED_TOKENS if self.on_cpu else TRANSLATED_TOKENS_GPU
        self.batch_tokens = usual if batch_tokens is None else batch_tokens
        self._most_sentences = _SENTENCES if self.on_cpu else _SENTENCES_GPU
        in_processes = self.on_cpu and not batches.has_threads
        self.workers = Workers(batches, max(n_workers, 1), in_processes)
        self.notes = Notes()
        most = batches.most_positions
        longest = LONGEST if most is None else min(most - 1, LONGEST)  # EOS takes a place
        self.longest = longest - bool(tokenizer.tags)  # and so does a tag
        if self.longest < 1:
            raise UserError(
                f"{name}: has no place for a word, as the end of a sentence and its language tag take "
                f"all of model.max_positions = {most}; give another model"
            )
        self._n_lines = 0

    @classmethod
    def load(
        cls,
        folder: str | Path | Sequence[str | Path],
        device: str = "auto",
        precision: str = "auto",
        batch_tokens: int | None = None,
        n_workers: int = 1,
    ) -> "Translator":
        """Load the best model of a run, a checkpoint or an exported folder.

        Args:
            folder: Where it is; several folders are an ensemble.
            device: auto, cpu or cuda.
            precision: auto, fp32, bf16, int8, fp16 or fp64.
            batch_tokens: See the class.
            n_workers: See the class.

        Raises:
            UserError: When there is no usable model, the models do not go together, or the machine
                cannot do as asked.
        """
        where = choose_device(device)
        given = [folder] if isinstance(folder, str | Path) else folder
        folders = [Path(f) for f in given]
        if not folders:
            raise UserError("no model to load; give at least one folder")
        if len(folders) == 1 and is_for_engine(only := resolve(folders[0])):
            found = load_engine_model(only)
            engine = Engine(found, where, precision, n_workers, torch.get_num_threads())
            return cls(engine, found.tokenizer, batch_tokens, n_workers, name=str(only))
        if precision != "auto":
            choose_precision(precision, where)  # refuses what cannot be before anything is read
        saved = [load_model(f) for f in folders]
        widest = max(s.config.d_model for s in saved)
        name, why = choose_precision(precision, where, widest)
        for other in saved[1:]:
            if other.tokenizer.files() != saved[0].tokenizer.files():
                raise UserError(
                    f"{other.folder}: has another tokenizer than {saved[0].folder}; "
                    "models that translate together must share one"
                )
        models = [build_model(s).to(device=where, dtype=DTYPES[name]) for s in saved]
        for model in models:
            pack(model, name)
        title = ", ".join(str(s.folder) for s in saved)
        translator = cls(models[0], saved[0].tokenizer, batch_tokens, n_workers, models[1:], title)
        translator.precision, translator.why_precision = name, why
        return translator

    def translate(
        self,
        texts: Sequence[str],
        config: SearchConfig | None = None,
        *,
        beam_size: int | None = None,
        tgt_lang: str | None = None,
        prefixes: Sequence[str] | None = None,
    ) -> list[str]:
        """Translate lines; the best translation of each, in the order given.

        Args:
            texts: Lines; a line break inside one is a space to the model.
            config: How to search.
            beam_size: Instead of the one in `config`.
            tgt_lang: What to translate into, where the model knows several languages.
            prefixes: What each translation must begin with; see `alternatives`.
        """
        some = self.stream(texts, config, beam_size=beam_size, tgt_lang=tgt_lang, prefixes=prefixes)
        return list(some)

    def stream(
        self,
        lines: Iterable[str],
        config: SearchConfig | None = None,
        *,
        beam_size: int | None = None,
        tgt_lang: str | None = None,
        prefixes: Iterable[str] | None = None,
    ) -> Iterator[str]:
        """Translate lines as they come, a window at a time, in constant memory.

        Args:
            lines: Any iterable.
            config: How to search.
            beam_size: Instead of the one in `config`.
            tgt_lang: What to translate into, where the model knows several languages.
            prefixes: As many as lines; see `alternatives`.
        """
        if isinstance(lines, str) or isinstance(prefixes, str):
            raise UserError(_ONE_TEXT)
        config = config or SearchConfig()
        if beam_size is not None:
            config = set_field(config, "beam_size", beam_size, "beam_size")
        lines, beginnings = iter(lines), None if prefixes is None else iter(prefixes)
        while window := list(itertools.islice(lines, WINDOW)):
            some = None if beginnings is None else list(itertools.islice(beginnings, len(window)))
            found = self.alternatives(
                window, config, [tgt_lang] * len(window), some, with_scores=False
            )
            yield from (best.text for best, *_ in found)
        if beginnings is not None and next(beginnings, None) is not None:
            raise UserError("there are more prefixes than lines; give one for each")

    def alternatives(
        self,
        texts: Sequence[str],
        config: SearchConfig,
        tgt_lang: Sequence[str | None] | None = None,
        prefixes: Sequence[str] | None = None,
        with_scores: bool = True,
    ) -> list[list[Translation]]:
        """Translate lines, with up to `config.n_best` translations of each, best first.

        They differ as texts where the beam holds as many different ones (`join`). A model that was
        trained with BPE-dropout also finds texts in other pieces than the tokenizer cuts them into,
        less probable or more. Scores are those of the tokenizer's own pieces, the same as `score`
        gives, and the order is theirs: so the first of several need not be the one that a search for
        one alone ends with.

        A prefix is cut into pieces as a text of its own, and the translation goes on after its last
        piece, which stays as it is: after `Ein` may come ` Hund`, or `en`. Spaces around it do not
        count, and an empty one asks for nothing. The first segment of a line that is translated in
        parts begins with it.

        Args:
            texts: Lines.
            config: How to search.
            tgt_lang: What to translate each line into, where the model knows several languages.
            prefixes: What each translation must begin with.
            with_scores: False: the scores are those of the search, whatever pieces it took, which
                saves the time to compute them anew. CTranslate2's search has none for single tokens.

        Returns:
            One list a line, in the order given, none empty. A blank line has the empty text alone, or
            its prefix.

        Raises:
            UserError: When a language is not known, a prefix is longer than the model can take, they
                are not as many as lines, settings of the search do not go together, or CTranslate2
                runs the model and has no such search.
        """
        if isinstance(texts, str):
            raise UserError(_ONE_TEXT)
        if tgt_lang and len(tgt_lang) != len(texts):
            raise UserError(f"{len(texts)} lines have {len(tgt_lang)} languages; give one for each")
        check_search(config)
        if config.beam_size > (n := self.tokenizer.vocab_size):
            raise UserError(
                f"--beam-size {config.beam_size}: is more than the {n} pieces of the model"
            )
        tags = [tag_ids(self.tokenizer, name) for name in tgt_lang or [None] * len(texts)]
        prefixes = [""] * len(texts) if prefixes is None else [as_line(p) for p in prefixes]
        beginnings = self._encoded_prefixes(prefixes, len(texts))
        segments: list[Example] = []
        owners: list[int] = []
        for number, parts in enumerate(self._segment(texts)):
            for part in parts:
                first = not owners or owners[-1] != number
                beginning = beginnings[number] if first else []
                segments.append(Example(tags[number] + part, beginning, number))
                owners.append(number)
        # Several of a beam may be the same text in other pieces, so all are looked at.
        wide = 1 < config.n_best < config.beam_size and not config.sample
        wider = dataclasses.replace(config, n_best=config.beam_size) if wide else config
        found = self._search(segments, wider, with_scores)
        if with_scores:
            found = self._in_own_pieces(segments, found, config.length_penalty)
        per_line: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for owner, hypotheses in zip(owners, found, strict=True):
            per_line[owner].append(hypotheses)
        results = [
            join(parts, self.tokenizer, config) if parts else [Translation(prefix, 0.0, 0.0)]
            for text, prefix, parts in zip(texts, prefixes, per_line, strict=True)
        ]
        for number, result in enumerate(results, start=self._n_lines + 1):
            if not all(translation.finished for translation in result):
                self.notes.unfinished.add(number)
        self._n_lines += len(texts)
        return results

    def score(
        self,
        pairs: Sequence[tuple[str, str]],
        tgt_lang: str | None = None,
        length_penalty: float = SearchConfig.length_penalty,
    ) -> list[Translation]:
        """The log-probability that the model gives to each translation of a given text.

        For a translation that the model made itself, the numbers are those of `alternatives`, up to
        rounding.

        Args:
            pairs: Source and target lines.
            tgt_lang: Language of the targets, where the model knows several.
            length_penalty: For the score; see `beam_search`.

        Returns:
            In the order given. A pair with a blank source has log-probability 0.

        Raises:
            UserError: When a line is longer than the model can take, or the model computes numbers
                that are not finite.
        """
        tag = tag_ids(self.tokenizer, tgt_lang)
        src = self.tokenizer.encode_batch([as_line(s) for s, _ in pairs])
        tgt = self.tokenizer.encode_batch([as_line(t) for _, t in pairs])
        for number, (s, t) in enumerate(zip(src, tgt, strict=True), start=self._n_lines + 1):
            if max(len(s), len(t)) > self.longest:
                raise UserError(
                    f"line {number}: {max(len(s), len(t))} tokens, more than the {self.longest} "
                    "that can be scored at once; split it"
                )
        results = [Translation(text, 0.0, 0.0) for _, text in pairs]
        given = [Example(tag + s, t, i) for i, (s, t) in enumerate(zip(src, tgt, strict=True)) if s]
        for example, h in zip(given, self._scored(given, length_penalty), strict=True):
            text = pairs[example.index][1]
            results[example.index] = Translation(
                text, h.score, h.log_prob, h.token_log_probs, ids=(*h.ids, EOS)
            )
        self._n_lines += len(pairs)
        return results

    def _encoded_prefixes(self, prefixes: Sequence[str], n_lines: int) -> list[list[int]]:
        if len(prefixes) != n_lines:
            raise UserError(f"{n_lines} lines have {len(prefixes)} prefixes; give one for each")
        encoded = self.tokenizer.encode_batch(prefixes)
        for number, ids in enumerate(encoded, start=self._n_lines + 1):
            if len(ids) > self.longest:
                raise UserError(
                    f"prefix of line {number}: {len(ids)} tokens, more than the {self.longest} that "
                    "the model can take; shorten it"
                )
        return encoded

    def _segment(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """Cut each line into segments of ids that the model can take; none for a blank line."""
        texts = [as_line(text) for text in texts]
        encoded = self.tokenizer.encode_batch(texts)
        for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), start=1):
            if len(ids) <= self.longest:
                yield [ids] if ids else []
            else:
                self.notes.split.add(self._n_lines + number)
                yield split_long(text, self.tokenizer, self.longest)

    def _search(
        self, segments: list[Example], config: SearchConfig, with_scores: bool
    ) -> list[list[Hypothesis]]:
        """Search for each segment, batched by length, results in the order given.

        A segment's target is what its translation must begin with, its index the line that it is of.
        """
        beams = config.n_best if config.sample else config.beam_size  # rows of a sentence
        batches = self._batches(range(len(segments)), [len(s.src) for s in segments], beams)
        found: list[list[Hypothesis]] = [[] for _ in segments]
        looping_lines: set[int] = set()
        keys = _keys(segments, self._n_lines)
        tasks = [
            ([segments[i] for i in rows], config, [keys[i] for i in rows], with_scores)
            for rows in batches
        ]
        for rows, (results, in_a_loop) in zip(
            batches, self.workers.map(type(self.batches).search, tasks), strict=True
        ):
            for i, hypotheses in zip(rows, results, strict=True):
                found[i] = hypotheses
            looping_lines.update(self._n_lines + 1 + i for i in in_a_loop)
        if not all(found):
            raise self._not_finite()
        for number in sorted(looping_lines):
            self.notes.looping.add(number)
        return found

    def _in_own_pieces(
        self, segments: list[Example], found: list[list[Hypothesis]], length_penalty: float
    ) -> list[list[Hypothesis]]:
        """The same texts in the pieces that the tokenizer cuts them into, best first.

        What came to no end stays as it is: with an end it would be another output.
        """
        places = [(i, k) for i, some in enumerate(found) for k, h in enumerate(some) if h.finished]
        texts = self.tokenizer.decode_batch([found[i][k].ids for i, k in places])
        own = self.tokenizer.encode_batch([text.strip() for text in texts])
        others = [
            (i, k, ids)
            for (i, k), ids in zip(places, own, strict=True)
            if tuple(ids) != found[i][k].ids and len(ids) <= self.longest
        ]
        examples = [Example(segments[i].src, ids, segments[i].index) for i, _, ids in others]
        result = [list(some) for some in found]
        for (i, k, _), scored in zip(others, self._scored(examples, length_penalty), strict=True):
            result[i][k] = scored
        return [sorted(some, key=falling) for some in result]

    def _scored(self, examples: Sequence[Example], length_penalty: float) -> list[Hypothesis]:
        """The targets as if a search had found them, in the order given."""
        found: list[Hypothesis | None] = [None] * len(examples)
        sizes = [max(map(len, example.sides())) for example in examples]
        # There are logits of all positions at once, not of one a sentence as in a search.
        batches = self._batches(range(len(examples)), sizes, 1 if self.on_cpu else _SCORED_SHARE)
        tasks = [([examples[i] for i in rows],) for rows in batches]
        all_log_probs = self.workers.map(type(self.batches).log_probs, tasks)
        for rows, log_probs in zip(batches, all_log_probs, strict=True):
            for row, values in zip(rows, log_probs, strict=True):
                ids = tuple(examples[row].sides()[1])
                each = tuple(values[: len(ids) + 1])
                total = math.fsum(each)
                score = total / length_norm(len(each), length_penalty)
                if not math.isfinite(total):
                    raise self._not_finite()
                found[row] = Hypothesis(ids, score, total, each, finished=True)
        return [h for h in found if h is not None]

    def _not_finite(self) -> UserError:
        """What to say of a model that computes numbers which are not finite."""
        is_precise = self.precision in ("fp32", "fp64")
        advice = "another checkpoint" if is_precise else "--precision fp32, or another checkpoint"
        return UserError(f"{self.name}: computes numbers that are not finite; try {advice}")

    def _batches(self, rows: Iterable[int], sizes: Sequence[int], beams: int) -> list[list[int]]:
        """Rows in batches of similar length, the longest first, within the token budget."""
        batches: list[list[int]] = []
        room = 0
        for row in sorted(rows, key=lambda i: (-sizes[i], i)):
            if room == 0:
                batches.append([])
                tokens, sentences = self.batch_tokens // beams, self._most_sentences // beams
                room = max(1, min(tokens // (sizes[row] + 1), sentences))
            batches[-1].append(row)
            room -= 1
        return batches


def _keys(segments: Sequence[Example], n_lines: int) -> list[int]:
    """What random numbers of each segment follow from: its line and its place in it."""
    groups = itertools.groupby(segments, key=lambda segment: segment.index)
    return [(place << 64) + n_lines + line for line, some in groups for place, _ in enumerate(some)]
