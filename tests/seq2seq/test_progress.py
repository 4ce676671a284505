from dataclasses import replace

from seq2seq.progress import Progress


def judged(*scores: tuple[int, float], usual_every: int) -> Progress:
    """A run after validations at some steps."""
    progress = Progress()
    for step, score in scores:
        progress = replace(progress, step=step).judged(score, step % usual_every == 0)
    return progress


def test_patience_counts_the_validations_that_are_no_better() -> None:
    progress = judged((2, 1.0), (4, 10.0), (6, 9.0), (8, 10.0), usual_every=2)
    assert (progress.best_step, progress.best_score, progress.n_worse) == (4, 10.0, 2)
    assert replace(progress, step=10).judged(11.0, is_usual=True).n_worse == 0


def test_a_validation_out_of_turn_may_be_the_best_and_changes_no_patience() -> None:
    scores = ((4, 10.0), (6, 11.0), (8, 10.5))
    usual = judged(*scores, usual_every=2)
    for extra in (12.0, 1.0):
        progress = judged(scores[0], (5, extra), *scores[1:], usual_every=2)
        assert progress.n_worse == usual.n_worse == 1
        assert progress.best_score == max(extra, 11.0)


def test_of_models_that_cannot_translate_yet_the_latest_is_the_best() -> None:
    progress = judged((2, 0.0), (4, 0.0), (6, 0.0), usual_every=2)
    assert (progress.best_step, progress.n_worse) == (6, 2)
    progress = judged((2, 0.0), (4, 1.0), (6, 0.0), usual_every=2)
    assert progress.best_step == 4
