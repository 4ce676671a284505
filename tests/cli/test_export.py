import pytest


@pytest.fixture
def export(tfm, model):
    return lambda *options: tfm("export", "-m", model, "--to", "safetensors", "-o", "out", *options)


def test_an_export_translates_like_the_run(tfm, model, export, parallel):
    assert export().code == 0
    src, _ = parallel
    options = ["--precision", "fp32"]
    exported = tfm("translate", "-m", "out", src, *options)
    assert exported.out == tfm("translate", "-m", model, src, *options).out


def test_an_export_is_replaced_only_when_asked(export, tmp_path):
    export()
    (tmp_path / "out" / "mine").write_bytes(b"note")
    refused = export()
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (tmp_path / "out" / "mine").exists()
    assert export("--overwrite").code == 0
    assert not (tmp_path / "out" / "mine").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_is_never_replaced(export, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis").write_bytes(b"years of work")
    assert export("--overwrite").code == 2
    assert (tmp_path / "out" / "thesis").read_bytes() == b"years of work"


def test_an_unknown_format_is_refused(tfm, model, tmp_path):
    result = tfm("export", "-m", model, "--to", "pickle", "-o", "out")
    assert result.code == 2
    assert "--to pickle: is not one of " in result.err
    assert not (tmp_path / "out").exists()
