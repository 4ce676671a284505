import json

import pytest


def test_jsonl_holds_sources_and_ranked_hypotheses(tfm, model):
    arguments = ["translate", "-m", model, "--beam-size", 3, "--n-best", 2, "--format", "jsonl"]
    lines = tfm(*arguments, stdin=b"a dog\n\n\xff\n").out.decode().split("\n")
    documents = [json.loads(line) for line in lines if line]
    assert [d["source"] for d in documents] == ["a dog", "", "\ufffd"]
    assert [len(d["hypotheses"]) for d in documents] == [2, 1, 2]
    for document in documents:
        scores = [h["score"] for h in document["hypotheses"]]
        assert scores == sorted(scores, reverse=True)
        assert all(h.keys() == {"text", "score", "log_prob"} for h in document["hypotheses"])


def test_token_scores_add_up_to_the_log_probability(tfm, model):
    arguments = ["translate", "-m", model, "--format", "jsonl", "--token-scores", "--n-best", 3]
    for line in tfm(*arguments, stdin="a dog\nthe Straße 你好\n".encode()).out.split(b"\n")[:-1]:
        for hypothesis in json.loads(line)["hypotheses"]:
            assert list(hypothesis)[3:] == ["tokens", "token_log_probs"]
            assert len(hypothesis["tokens"]) == len(hypothesis["token_log_probs"])
            assert sum(hypothesis["token_log_probs"]) == pytest.approx(
                hypothesis["log_prob"], abs=1e-4
            )
            if "<0x" not in (shown := "".join(hypothesis["tokens"]).removesuffix("</s>")):
                assert shown.replace("▁", " ").strip() == hypothesis["text"]


def test_tsv_has_line_rank_score_text(tfm, model):
    arguments = ["translate", "-m", model, "--beam-size", 2, "--n-best", 2, "--format", "tsv"]
    lines = tfm(*arguments, stdin=b"a\tdog\nthe cat\n").out.decode().split("\n")[:-1]
    rows = [line.split("\t") for line in lines]
    assert [row[:2] for row in rows] == [["1", "1"], ["1", "2"], ["2", "1"], ["2", "2"]]
    assert all(len(row) == 4 and float(row[2]) <= 0 for row in rows)
