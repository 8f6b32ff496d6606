"""What every command line has in common."""

from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import pytest

import cli
from cli import Parser


def test_what_a_user_can_mend_is_one_line(capsys, tmp_path):
    def main():
        raise ValueError("--lr: too large.")

    with pytest.raises(SystemExit) as stopped:
        cli.run(main)
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: --lr: too large.\n"


def test_a_defect_keeps_its_traceback():
    def main():
        raise TypeError("a defect")

    with pytest.raises(TypeError):
        cli.run(main)


def test_a_package_that_is_missing_is_named():
    cli.require_packages("--preview", "json")
    with pytest.raises(ValueError, match="--preview needs no_such_package: pip install -r requirements-rgb.txt"):
        cli.require_packages("--preview", "json", "no_such_package")


@pytest.mark.parametrize("value", ["0", "nan"])
def test_a_number_below_its_bound_ends_the_program(capsys, value):
    parser = Parser()
    parser.add_argument("--jobs", type=float)
    parser.at_least(parser.parse_args(["--jobs", "1"]), jobs=1)
    with pytest.raises(SystemExit):
        parser.at_least(parser.parse_args(["--jobs", value]), jobs=1)
    assert f"--jobs {float(value)}: must be at least 1." in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0.1", "5.1", "nan"])
def test_a_number_outside_its_bounds_ends_the_program(capsys, value):
    parser = Parser()
    parser.add_argument("--aspect", type=float)
    parser.between(parser.parse_args(["--aspect", "5"]), "aspect", 0.2, 5)
    with pytest.raises(SystemExit):
        parser.between(parser.parse_args(["--aspect", value]), "aspect", 0.2, 5)
    assert f"--aspect {value}: must be between 0.2 and 5." in capsys.readouterr().err


def test_all_that_is_wrong_is_said_in_one_line(capsys):
    Parser().refuse([])
    with pytest.raises(SystemExit):
        Parser().refuse(["--lr: wrong.", "--seed: wrong as well."])
    assert capsys.readouterr().err.endswith("error: --lr: wrong. --seed: wrong as well. See --help.\n")
    parser = Parser()
    parser.add_argument("--jobs", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=-1)
    with pytest.raises(SystemExit):
        parser.at_least(parser.parse_args([]), jobs=1, seeds=0)
    assert "error: --jobs 0: must be at least 1. --seeds -1: must be at least 0. See" in capsys.readouterr().err


MISTYPED = [("--batchsize", "--batch-size"), ("--use_description", "--use_descriptions")]


def test_a_flag_like_no_other_is_not_guessed_at(capsys):
    parser = Parser(prog="x.py")
    parser.add_argument("--trim_vocab", action="store_true")
    with pytest.raises(SystemExit):
        parser.parse_args(["--stric"])
    assert capsys.readouterr().err == "x.py: error: unrecognized arguments: --stric. See --help.\n"


def test_a_mistyped_flag_with_its_value_in_one_word_is_known(capsys):
    parser = Parser(prog="x.py")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--min-lr", type=float)
    with pytest.raises(SystemExit):
        parser.parse_args(["--minlr=1e-8"])
    assert capsys.readouterr().err.endswith("--minlr=1e-8. Did you mean --min-lr? See --help.\n")


@pytest.mark.parametrize(("typed", "meant"), MISTYPED)
def test_a_mistyped_flag_is_one_line_with_the_flag_that_is_close(capsys, typed, meant):
    parser = Parser(prog="x.py")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--use_descriptions", action="store_true")
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args([typed, "8"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err == f"x.py: error: unrecognized arguments: {typed} 8. Did you mean {meant}? See --help.\n"


@pytest.mark.parametrize("chunk", [1, 3])
def test_processes_keep_the_order(chunk):
    for n in (0, 1, 50):
        assert list(cli.in_processes(str, range(n), 2, chunk)) == [str(job) for job in range(n)]


def test_processes_are_few_jobs_ahead_of_who_takes_the_results(monkeypatch):
    """Results that wait lie in memory: a slow disk must not let all of a data set pile up there."""
    chunks = []
    submit = ProcessPoolExecutor.submit
    monkeypatch.setattr(ProcessPoolExecutor, "submit", lambda *job: chunks.append(job) or submit(*job))
    results = cli.in_processes(str, range(1000), 2, 2)
    for taken in (1, 100):
        assert len(list(islice(results, taken))) == taken
        assert len(chunks) <= taken / 2 + 2 * cli.AHEAD + 1
    results.close()


def refuse_seven(job):
    if job == 7:
        raise ValueError("seven")
    return job


def test_an_exception_of_a_process_arrives_in_its_place():
    results = cli.in_processes(refuse_seven, range(1000), 2)
    assert list(islice(results, 7)) == list(range(7))
    with pytest.raises(ValueError, match="seven"):
        next(results)
    assert list(results) == []
