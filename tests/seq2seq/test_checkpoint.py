import dataclasses
import json
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from seq2seq.checkpoint import average, build_model, load_model, read_config, resolve, save_model
from seq2seq.config import ModelConfig
from seq2seq.model import Transformer
from seq2seq.run import Run
from seq2seq.storage import manifest, publish_folder, remove_folder
from tokenizer.base import Tokenizer
from tokenizer.errors import UserError
from tokenizer.files import publish_file

TINY = ModelConfig(
    vocab_size=23, d_model=8, d_ff=12, n_heads=2, n_encoder_layers=3, n_decoder_layers=2
)


def forge(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace files and make the manifest agree, as an attacker can."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    rest = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    contents = {str(p.relative_to(folder)): p.read_bytes() for p in rest}
    (folder / "manifest.json").write_bytes(manifest(contents))


def weights_of(folder: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    return loaded


# Models


@pytest.mark.parametrize("tie", ["all", "target", "none"])
def test_a_model_that_was_saved_computes_the_same(
    tie: str, tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    config = dataclasses.replace(
        TINY, vocab_size=small_tokenizer.vocab_size, tie_embeddings=tie, positions="learned"
    )
    model = Transformer(config).eval()
    save_model(tmp_path / "m", config, dict(model.named_parameters()), small_tokenizer)

    saved = load_model(tmp_path / "m")
    again = build_model(saved)

    src, tgt = torch.tensor([[7, 8, 3]]), torch.tensor([[2, 9]])
    assert torch.equal(again(src, tgt), model(src, tgt))
    assert saved.config == config
    assert saved.tokenizer.encode("the dog") == small_tokenizer.encode("the dog")
    assert again.output.weight is again.tgt_embedding.weight or tie == "none"
    assert again.src_embedding.weight is again.tgt_embedding.weight or tie != "all"


def test_the_same_model_gives_the_same_files(
    small_model: Transformer, small_tokenizer: Tokenizer, model_folder: Path, tmp_path: Path
) -> None:
    weights = dict(small_model.named_parameters())
    save_model(tmp_path / "again", small_model.config, weights, small_tokenizer)
    for path in model_folder.rglob("*"):
        if path.is_file():
            other = tmp_path / "again" / path.relative_to(model_folder)
            assert path.read_bytes() == other.read_bytes()


def test_tied_matrices_are_stored_once(model_folder: Path, small_model: Transformer) -> None:
    assert weights_of(model_folder).keys() == dict(small_model.named_parameters()).keys()


PICKLE = b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x06exit 3\x85R."


@pytest.mark.parametrize("forgery", [PICKLE, safetensors.torch.save({"rest": torch.ones(2)})])
def test_forged_weights_are_refused_even_with_their_manifest(
    forgery: bytes, model_folder: Path
) -> None:
    forge(model_folder, {"model.safetensors": forgery})
    with pytest.raises(UserError, match=r"model\.safetensors: "):
        load_model(model_folder)


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_encoder_layers": 256, "n_decoder_layers": 256, "d_model": 1 << 14, "d_ff": 1 << 16},
        {"d_model": 1 << 30, "n_heads": 1 << 10},
        {"d_model": 1 << 62, "n_heads": 1},
        {"d_model": 10**30, "n_heads": 1},
        {"d_ff": 1 << 62},
        {"vocab_size": 1 << 62},
        {"vocab_size": 10**30},
        {"positions": "learned", "max_positions": 1 << 20, "d_model": 1 << 20},
    ],
)
def test_a_config_that_claims_a_giant_is_refused_at_once(
    sizes: dict[str, object], model_folder: Path
) -> None:
    config = json.loads((model_folder / "config.json").read_bytes())
    config["model"] |= sizes
    forge(model_folder, {"config.json": json.dumps(config).encode()})
    start = time.monotonic()
    with pytest.raises(UserError, match=r"config\.json|model\.safetensors|the tokenizer has"):
        load_model(model_folder)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "made by a newer tfm"),
        ({"format": "1"}, "'format'"),
        ({"model": None}, "'model' is not a table"),
        ({"model": {}}, "is missing"),
        ({"model": {"d_model": 3}}, "is missing"),
    ],
)
def test_a_description_that_is_none_is_refused(
    change: dict[str, object], message: str, model_folder: Path
) -> None:
    config = json.loads((model_folder / "config.json").read_bytes())
    forge(model_folder, {"config.json": json.dumps({**config, **change}).encode()})
    with pytest.raises(UserError, match=rf"config\.json: .*{message}"):
        load_model(model_folder)


@pytest.mark.parametrize("content", [b"[]", b"null", b"{", b"\xff", b'{"a":1,"a":1}', b"9"])
def test_a_description_that_is_no_table_is_refused(content: bytes, model_folder: Path) -> None:
    forge(model_folder, {"config.json": content})
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(model_folder)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "manifest.json", "tokenizer/tokenizer.json"]
)
def test_a_file_that_is_missing_cut_or_flipped_is_named(name: str, model_folder: Path) -> None:
    path = model_folder / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    named = "json" if name == "manifest.json" else name
    for damaged in (content[:-2], content + b"x", b"", content[:1], flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=named):
            load_model(model_folder)
    path.unlink()
    with pytest.raises(UserError, match="tokenizer" if "tokenizer" in name else name):
        load_model(model_folder)


def test_a_tokenizer_of_another_size_is_refused(
    model_folder: Path, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = json.loads((model_folder / "config.json").read_bytes())
    config["model"]["vocab_size"] -= 1
    weights = weights_of(model_folder)
    weights["src_embedding.weight"] = weights["src_embedding.weight"][1:].clone()
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors.torch.save(weights),
    }
    forge(model_folder, files)
    with pytest.raises(UserError, match="not of one run"):
        load_model(model_folder)


def test_stray_files_are_not_looked_at(model_folder: Path) -> None:
    (model_folder / "optim.pt").write_bytes(PICKLE)
    os.mkfifo(model_folder / "pipe")
    load_model(model_folder)


# What -m means


def test_a_run_means_its_best_model_else_its_latest(model_folder: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for step in (5, 10):
        run.checkpoint(step).parent.mkdir(parents=True, exist_ok=True)
        model_folder.rename(run.checkpoint(step))
        publish_folder(model_folder, {"x": b""})
        run.point("latest", step)
    assert resolve(run.folder) == run.checkpoint(10)
    run.point("best", 5)
    assert resolve(run.folder) == run.checkpoint(5)
    assert resolve(run.checkpoint(10)) == run.checkpoint(10)
    assert resolve(run.folder / "best") == run.checkpoint(5)
    assert resolve(run.folder / "latest") == run.checkpoint(10)
    shutil.rmtree(run.checkpoint(5))
    message = f"00000005, which is not there; give one that is: -m {run.checkpoint(10)}"
    with pytest.raises(UserError, match=f"best: names checkpoint {message}$"):
        resolve(run.folder)
    shutil.rmtree(run.checkpoint(10))
    with pytest.raises(UserError, match=r"which is not there; train anew$"):
        resolve(run.folder / "latest")
    publish_folder(run.state(10), {"x": b""})
    with pytest.raises(UserError, match=r"not there; run the same tfm train .* mends it$"):
        resolve(run.folder / "latest")


def test_a_place_without_a_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for name, message in [
        ("missing", "no such folder; train a model first"),
        ("file.zip", "is a file; a model is a directory"),
        ("empty", "holds no model yet; train one"),
    ]:
        with pytest.raises(UserError, match=message):
            resolve(tmp_path / name)


@pytest.mark.parametrize("text", [b"../../../etc", b"", b"5", b"00000005/..", b"\xff", b"0" * 64])
def test_a_pointer_that_names_no_checkpoint_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "best").write_bytes(text)
    with pytest.raises(UserError, match="best: names no checkpoint"):
        resolve(tmp_path)


def test_a_pointer_to_what_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    publish_file(tmp_path / "best", b"00000005\n")
    with pytest.raises(UserError, match="00000005"):
        load_model(tmp_path)


def test_a_model_that_a_training_replaces_meanwhile_is_loaded(
    small_model: Transformer, small_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    run, weights = Run(tmp_path), dict(small_model.named_parameters())

    def save(step: int) -> None:
        save_model(run.checkpoint(step), small_model.config, weights, small_tokenizer)
        run.point("best", step)
        if step:
            remove_folder(run.checkpoint(step - 1))

    save(0)
    with ThreadPoolExecutor(1) as training:
        saved = [training.submit(save, step) for step in range(1, 60)]
        while not saved[-1].done():
            load_model(run.folder)
    assert [future.result() for future in saved] == [None] * 59


# Averages


@pytest.mark.parametrize("n", [1, 3])
def test_the_average_of_a_model_with_itself_is_itself(n: int, model_folder: Path) -> None:
    model = load_model(model_folder)
    mean = average([model] * n)
    assert mean.keys() == model.weights.keys()
    assert all(torch.equal(mean[name], w) for name, w in model.weights.items())


def test_the_average_of_two_lies_in_the_middle(model_folder: Path) -> None:
    one = load_model(model_folder)
    weights = {name: torch.rand_like(w) for name, w in one.weights.items()}
    other = dataclasses.replace(one, weights=weights)
    for name, weight in average([one, other]).items():
        torch.testing.assert_close(weight - one.weights[name], weights[name] - weight)


def test_models_that_were_trained_with_other_dropout_are_averaged(model_folder: Path) -> None:
    one = load_model(model_folder)
    other = dataclasses.replace(one, config=dataclasses.replace(one.config, dropout=0.5))
    assert average([one, other]).keys() == one.weights.keys()


def test_models_of_different_shapes_are_not_averaged(model_folder: Path) -> None:
    model = load_model(model_folder)
    other = dataclasses.replace(model, config=dataclasses.replace(model.config, norm="post"))
    with pytest.raises(UserError, match="another shape"):
        average([model, other])
