from seq2seq.checkpoint import Run, load_model


def test_it_tells_size_history_and_scores_of_a_run(tfm, model):
    text = tfm("info", "-m", model).out.decode()
    n_parameters = sum(w.numel() for w in load_model(model).weights.values())
    assert f"{n_parameters:,}" in text
    assert "20 steps" in text
    assert "BLEU" in text
    assert "best" in text


def test_it_tells_what_a_checkpoint_is(tfm, model):
    text = tfm("info", "-m", Run(model).checkpoint(20)).out.decode()
    assert "parameters" in text
    assert "BLEU" not in text


def test_a_log_that_was_cut_off_is_read_as_far_as_it_goes(tfm, train_arguments, tmp_path):
    tfm(*train_arguments)
    complete = tfm("info", "-m", "run").out
    with (tmp_path / "run" / "log.jsonl").open("ab") as log:
        log.write(b'{"kind": "step", "step": "many"}\n[1]\n{"kind": "step", "st')
    assert tfm("info", "-m", "run").out == complete


def test_without_a_model_it_says_what_to_do(tfm, tmp_path):
    (tmp_path / "model").mkdir()
    result = tfm("info")
    assert result.code == 2
    assert "model: holds no model yet; train one with" in result.err
