"""Text to text: windows of lines → batches sorted by length → search → text in input order.

    translator = Translator.load("model")
    translator.translate(["A dog runs."])                      # ["Ein Hund läuft."]
    for line in translator.stream(lines, beam_size=5): ...     # any iterable, constant memory

Sorting and restoring the order happen here and nowhere else. Empty and blank lines stay as they
are and never reach the model; a line longer than the model can take is cut at sentence ends,
translated in parts, and joined again.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from seq2seq.batch import Example, collate
from seq2seq.checkpoint import build_model, is_for_engine, load_model, resolve
from seq2seq.config import SearchConfig, set_field
from seq2seq.decoder import ModelStep, pack
from seq2seq.engine import Engine
from seq2seq.engine_format import load_engine_model
from seq2seq.hardware import DTYPES, choose_device, choose_precision
from seq2seq.model import Transformer
from seq2seq.search import Hypothesis, search
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.special import PAD

WINDOW = 2048  # lines that are sorted by length together
LONGEST = 256  # source tokens of a segment, at most
_SENTENCES = 256  # of a batch, at most, divided by the beam
_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class Translation:
    """One translation of one line.

    Attributes:
        text: The translation.
        score: What alternatives are ranked by; length-normalised log-probability.
        log_prob: Natural logarithm of its probability, summed over its segments.
        token_log_probs: The same, one a token.
        finished: Whether the model came to an end by itself, or was cut at the longest length.
    """

    text: str
    score: float
    log_prob: float
    token_log_probs: tuple[float, ...] = ()
    finished: bool = True


@dataclass(slots=True)
class Notes:
    """What a user should know about the lines translated so far.

    Attributes:
        split: Numbers of lines that were cut into segments, counted from 1.
        unfinished: Numbers of lines whose translation was cut at the longest length.
    """

    split: list[int] = field(default_factory=list)
    unfinished: list[int] = field(default_factory=list)


class Translator:
    """A model with its tokenizer, ready to translate.

    Attributes:
        notes: What happened to which line; grows as lines are translated.
    """

    def __init__(
        self,
        model: Transformer | Engine,
        tokenizer: Tokenizer,
        batch_tokens: int = 4096,
        n_workers: int = 1,
    ) -> None:
        """Wrap a model.

        Args:
            model: In the device and precision to use; ours, or one that CTranslate2 runs.
            tokenizer: Its tokenizer.
            batch_tokens: Source tokens, times the beam, that are decoded together at most.
            n_workers: Batches that are decoded at once, each by a thread of its own.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.batch_tokens = batch_tokens
        self.n_workers = n_workers
        self.notes = Notes()
        limit = model.config.max_positions - 1 if model.config.positions == "learned" else LONGEST
        self.longest = min(limit, LONGEST) - bool(tokenizer.tags)  # a tag takes a place too
        self._n_lines = 0

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: str = "auto",
        batch_tokens: int = 4096,
        n_workers: int = 1,
    ) -> "Translator":
        """Load the best model of a run, a checkpoint or an exported folder.

        Args:
            folder: Where it is.
            device: auto, cpu or cuda.
            precision: auto, fp32, bf16, fp16 or fp64.
            batch_tokens: See the class.
            n_workers: See the class.

        Raises:
            UserError: When there is no usable model, or the machine cannot do as asked.
        """
        where = choose_device(device)
        folder = resolve(Path(folder))
        if is_for_engine(folder):
            found = load_engine_model(folder)
            engine = Engine(found, where, precision, n_workers, torch.get_num_threads())
            return cls(engine, found.tokenizer, batch_tokens, n_workers)
        name, _ = choose_precision(precision, where)
        saved = load_model(folder)
        model = build_model(saved).to(device=where, dtype=DTYPES[name])
        pack(model)
        return cls(model, saved.tokenizer, batch_tokens, n_workers)

    def translate(
        self,
        texts: Sequence[str],
        config: SearchConfig | None = None,
        *,
        beam_size: int | None = None,
        tgt_lang: str | None = None,
    ) -> list[str]:
        """Translate lines; the best translation of each, in the order given.

        Args:
            texts: Lines; a line break inside one is a space to the model.
            config: How to search.
            beam_size: Instead of the one in `config`.
            tgt_lang: What to translate into, where the model knows several languages.
        """
        return list(self.stream(texts, config, beam_size=beam_size, tgt_lang=tgt_lang))

    def stream(
        self,
        lines: Iterable[str],
        config: SearchConfig | None = None,
        *,
        beam_size: int | None = None,
        tgt_lang: str | None = None,
    ) -> Iterator[str]:
        """Translate lines as they come, a window at a time, in constant memory.

        Args:
            lines: Any iterable.
            config: How to search.
            beam_size: Instead of the one in `config`.
            tgt_lang: What to translate into, where the model knows several languages.
        """
        config = config or SearchConfig()
        if beam_size is not None:
            config = set_field(config, "beam_size", beam_size, "beam_size")
        lines = iter(lines)
        while window := list(itertools.islice(lines, WINDOW)):
            for best, *_ in self.alternatives(window, config, [tgt_lang] * len(window)):
                yield best.text

    def alternatives(
        self,
        texts: Sequence[str],
        config: SearchConfig,
        tgt_lang: Sequence[str | None] | None = None,
    ) -> list[list[Translation]]:
        """Translate lines, with up to `config.n_best` translations of each, best first.

        Args:
            texts: Lines.
            config: How to search.
            tgt_lang: What to translate each line into, where the model knows several languages.

        Returns:
            One list a line, in the order given, none empty. A blank line has itself alone.
        """
        segments: list[list[int]] = []
        owners: list[int] = []
        tags = [tag_ids(self.tokenizer, name) for name in tgt_lang or [None] * len(texts)]
        for number, parts in enumerate(self._segment(texts)):
            segments += [tags[number] + part for part in parts]
            owners += [number] * len(parts)
        found = self._search(segments, owners, config)
        per_line: list[list[list[Hypothesis]]] = [[] for _ in texts]
        for owner, hypotheses in zip(owners, found, strict=True):
            per_line[owner].append(hypotheses)
        results = [
            self._join(parts, config) if parts else [Translation(text, 0.0, 0.0)]
            for text, parts in zip(texts, per_line, strict=True)
        ]
        for number, result in enumerate(results, start=self._n_lines + 1):
            if not result[0].finished:
                self.notes.unfinished.append(number)
        self._n_lines += len(texts)
        return results

    @torch.inference_mode()
    def score(
        self, pairs: Sequence[tuple[str, str]], tgt_lang: str | None = None
    ) -> list[Translation]:
        """The log-probability that the model gives to each translation of a given text.

        Args:
            pairs: Source and target lines.
            tgt_lang: Language of the targets, where the model knows several.

        Returns:
            In the order given. A pair with a blank source has log-probability 0.

        Raises:
            UserError: When a line is longer than the model can take, or CTranslate2 runs the model.
        """
        if isinstance(self.model, Engine):
            raise UserError(
                "a model for CTranslate2 cannot score; score with the one it was made from"
            )
        tag = tag_ids(self.tokenizer, tgt_lang)
        src = self.tokenizer.encode_batch([_as_line(s) for s, _ in pairs])
        tgt = self.tokenizer.encode_batch([t for _, t in pairs])
        for number, (s, t) in enumerate(zip(src, tgt, strict=True), start=self._n_lines + 1):
            if max(len(s), len(t)) > self.longest:
                raise UserError(
                    f"line {number}: {max(len(s), len(t))} tokens, more than the {self.longest} "
                    "that can be scored at once; split it"
                )
        results = [Translation(text, 0.0, 0.0) for _, text in pairs]
        rows = [i for i, s in enumerate(src) if s]
        for batch_rows in self._batches(
            rows, [max(len(s), len(t)) for s, t in zip(src, tgt, strict=True)], 1
        ):
            batch = collate([Example(tag + src[i], tgt[i], i) for i in batch_rows]).to(self._device)
            logits = self.model(batch.src, batch.tgt_in)
            wide = torch.promote_types(logits.dtype, torch.float32)
            log_probs = logits.log_softmax(-1, dtype=wide).gather(-1, batch.tgt_out[..., None])[
                ..., 0
            ]
            for row, values, ids in zip(
                batch_rows, log_probs.tolist(), batch.tgt_out.tolist(), strict=True
            ):
                n = sum(i != PAD for i in ids)
                total = sum(values[:n])
                results[row] = Translation(pairs[row][1], total / n, total, tuple(values[:n]))
        self._n_lines += len(pairs)
        return results

    @property
    def _device(self) -> torch.device:
        if isinstance(self.model, Engine):
            return torch.device("cpu")  # where it takes its sentences
        return self.model.tgt_embedding.weight.device

    def _segment(self, texts: Sequence[str]) -> Iterator[list[list[int]]]:
        """Cut each line into segments of ids that the model can take; none for a blank line."""
        texts = [_as_line(text) for text in texts]
        encoded = self.tokenizer.encode_batch(texts)
        for number, (text, ids) in enumerate(zip(texts, encoded, strict=True), start=1):
            if len(ids) <= self.longest:
                yield [ids] if ids else []
            else:
                self.notes.split.append(self._n_lines + number)
                yield split_long(text, self.tokenizer, self.longest)

    def _search(
        self, segments: list[list[int]], owners: list[int], config: SearchConfig
    ) -> list[list[Hypothesis]]:
        """Search for each segment, batched by length, results in the order given."""
        found: list[list[Hypothesis]] = [[] for _ in segments]
        beams = config.n_best if config.sample else config.beam_size  # rows of a sentence
        batches = self._batches(range(len(segments)), [len(s) for s in segments], beams)

        def run(rows: list[int]) -> None:
            batch = collate([Example(segments[i], None, i) for i in rows]).to(self._device)
            max_len = self._max_len(batch.src, config)
            keys = [self._n_lines + owners[i] for i in rows]  # a line draws the same wherever it is
            if isinstance(self.model, Engine):
                results = self.model.search([segments[i] for i in rows], max_len.tolist(), config)
            else:
                with torch.inference_mode():
                    step = ModelStep(self.model, batch.src)
                    results = search(step, len(rows), max_len, config, keys)
            for i, hypotheses in zip(rows, results, strict=True):
                found[i] = hypotheses

        if self.n_workers == 1 or len(batches) == 1:
            for rows in batches:
                run(rows)
        else:
            with ThreadPoolExecutor(self.n_workers) as pool:
                list(pool.map(run, batches))
        if not all(found):
            raise UserError(
                "the model computes numbers that are not finite, so there is no translation; try "
                "--precision fp32, or another checkpoint"
            )
        return found

    def _max_len(self, src: Tensor, config: SearchConfig) -> Tensor:
        """Longest output of each sentence: a multiple of its source and some more, (B,)."""
        n_src = (src != PAD).sum(1)
        longest = (n_src * config.max_len_factor).long() + config.max_len_extra
        if self.model.config.positions == "learned":
            longest = longest.clamp(max=self.model.config.max_positions - 1)
        return longest

    def _batches(self, rows: Iterable[int], sizes: Sequence[int], beams: int) -> list[list[int]]:
        """Rows in batches of similar length, the longest first, within the token budget."""
        batches: list[list[int]] = []
        room = 0
        for row in sorted(rows, key=lambda i: (-sizes[i], i)):
            if room == 0:
                batches.append([])
                tokens = self.batch_tokens // beams
                room = max(1, min(tokens // (sizes[row] + 1), _SENTENCES // min(beams, _SENTENCES)))
            batches[-1].append(row)
            room -= 1
        return batches

    def _join(self, parts: list[list[Hypothesis]], config: SearchConfig) -> list[Translation]:
        """Join the hypotheses of the segments of a line, rank by rank."""
        results = []
        for rank in range(max(len(part) for part in parts)):
            chosen = [part[min(rank, len(part) - 1)] for part in parts]
            texts = self.tokenizer.decode_batch([h.ids for h in chosen])
            results.append(
                Translation(
                    text=" ".join(text.strip() for text in texts),
                    score=sum(h.score for h in chosen) / len(chosen),
                    log_prob=sum(h.log_prob for h in chosen),
                    token_log_probs=tuple(itertools.chain(*(h.token_log_probs for h in chosen))),
                    finished=all(h.finished for h in chosen),
                )
            )
        return results[: config.n_best]


def tag_ids(tokenizer: Tokenizer, tgt_lang: str | None) -> list[int]:
    """What stands at the front of a source to say the language it is to be translated into.

    Args:
        tokenizer: Of the model; without language tags there is one direction only.
        tgt_lang: Its name, or None.

    Returns:
        The id of the tag, or nothing.

    Raises:
        UserError: When the language is missing or not known, naming those that are.
    """
    known = tokenizer.tags
    if tgt_lang is None:
        if known:
            raise UserError(f"--tgt-lang is missing: give one of {', '.join(known)}")
        return []
    if not known:
        raise UserError(
            f"--tgt-lang {tgt_lang}: the tokenizer has no language tags; leave the option out, or "
            f"make a tokenizer for a new model with: tfm train-tokenizer --tag {tgt_lang} …"
        )
    if tgt_lang not in known:
        raise UserError(f"--tgt-lang {tgt_lang}: not known; give one of {', '.join(known)}")
    return [known[tgt_lang]]


def _as_line(text: str) -> str:
    """What the model reads of a text: training has shown it neither line breaks nor outer spaces."""
    return text.replace("\n", " ").strip()


def split_long(text: str, tokenizer: Tokenizer, longest: int) -> list[list[int]]:
    """Cut a text into segments of at most `longest` tokens: at sentence ends where it can be.

    Args:
        text: Not blank.
        tokenizer: Counts the tokens.
        longest: Tokens of a segment.

    Returns:
        The ids of each segment.
    """
    segments: list[list[int]] = []
    for unit in _pack(_SENTENCE_END.split(text), tokenizer, longest):
        if len(ids := tokenizer.encode(unit)) <= longest:
            segments.append(ids)
            continue
        for words in _pack(unit.split(), tokenizer, longest):
            ids = tokenizer.encode(words)
            segments += [ids[i : i + longest] for i in range(0, len(ids), longest)]
    return segments


def _pack(units: Sequence[str], tokenizer: Tokenizer, longest: int) -> list[str]:
    """Join neighbours as long as they fit together."""
    units = [unit for unit in units if unit.strip()]
    packed: list[str] = []
    room = 0
    for unit, ids in zip(units, tokenizer.encode_batch(units), strict=True):
        if packed and len(ids) + 1 <= room:
            packed[-1] += " " + unit
        else:
            packed.append(unit)
            room = longest
        room -= len(ids) + 1
    return packed
