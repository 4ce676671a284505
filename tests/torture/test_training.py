"""Training survives: struck at any operation on the disk, the same command goes on, bit for bit.

What is done is in `faults_in_training.py`; here it is chosen how much of it. The short form takes
every mode at a few operations, the long form every operation or every third.
"""

import pytest

MODES = ["kill", "tear", "EIO", "ENOSPC", "EROFS", "behind", "ahead"]


@pytest.fixture
def strike(program, parallel, tmp_path, tally):
    """Run the program several times at once, each with a list of HOW:FIRST:STRIDE."""

    def run(*lists, beginning="new"):
        commands = [
            (tmp_path / str(i), *parallel, beginning, *wishes) for i, wishes in enumerate(lists)
        ]
        for done in program("faults_in_training", *commands):
            assert done["faults"] > 0
            tally["cases tried"] += done["cases"]
            tally["faults injected"] += done["faults"]
            tally["kills survived"] += done["kills"]
            tally["bytes lost"] += done["lost"]

    return run


@pytest.mark.slow
def test_a_training_that_is_struck_at_some_operations_goes_on_bit_for_bit(strike):
    strike(
        [
            "random:1:1",
            "limit:5000:25000",
            *(f"{mode}:{20 + 50 * i}:350" for i, mode in enumerate(MODES)),
        ]
    )


@pytest.mark.torture
@pytest.mark.parametrize("mode", MODES)
def test_a_training_that_is_struck_at_every_operation_goes_on_bit_for_bit(strike, mode):
    stride = 2 if mode == "kill" else 6
    strike([f"{mode}:1:{stride}"], [f"{mode}:{1 + stride // 2}:{stride}"])


@pytest.mark.torture
def test_a_training_whose_files_may_not_grow_goes_on_bit_for_bit(strike):
    strike(["limit:0:1600"], ["limit:800:1600"])


@pytest.mark.torture
def test_a_training_that_is_killed_at_random_moments_goes_on_bit_for_bit(strike):
    strike(["random:2:15"], ["random:3:15"])


@pytest.mark.slow
def test_a_finished_model_is_not_lost_when_its_run_is_given_more_time(strike):
    strike(["kill:14:90", "ENOSPC:30:400"], beginning="finished")


@pytest.mark.slow
def test_there_is_always_a_model_while_a_run_is_begun_anew(strike):
    strike(["kill:9:90", "ENOSPC:30:400"], beginning="anew")


@pytest.mark.torture
@pytest.mark.parametrize("mode", MODES)
def test_there_is_always_a_model_at_any_operation_of_a_run_begun_anew(strike, mode):
    strike([f"{mode}:1:6"], [f"{mode}:4:6"], beginning="anew")


@pytest.mark.torture
@pytest.mark.parametrize("mode", MODES)
def test_a_finished_model_is_not_lost_at_any_operation(strike, mode):
    strike([f"{mode}:1:6"], [f"{mode}:4:6"], beginning="finished")
