"""The checklist passes on a whole tree, and a fault put into a module fails the line that names it."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import pre_training_checklist
from tests.helpers.corpus import MIXED, write_split

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["utils.py 参数", "fine_tuning.py 集成", "models.py 集成", "datasets.py 集成", "config.py 配置"]
READY = "".join(f"✓ {name}\n" for name in NAMES) + "\n✓ 所有检查通过！系统准备就绪\n"

# One process imports the slow packages and forks for each job: a folder to leave output in, the tree that is checked,
# the current folder, and the arguments. A process of its own, since pytest's may have threads, which no fork survives.
RUNNER = """
import json, os, runpy, sys
import torch
from transformers import AutoModel, AutoTokenizer, MT5EncoderModel, MT5ForConditionalGeneration
from tests.helpers import preload
children = {}
for output, tree, cwd, arguments in json.load(sys.stdin):
    children[output] = os.fork()
    if not children[output]:
        os.chdir(cwd)
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(os.path.join(output, name), os.O_WRONLY | os.O_CREAT), descriptor)
        program = os.path.join(tree, "pre_training_checklist.py")
        sys.argv, sys.path[0] = [program, *arguments], tree
        code = 70
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            os._exit(code)
for output, child in children.items():
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(os.path.join(output, "status"), "w") as file:
        file.write(str(status))
"""


def environment(home: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "OMP_NUM_THREADS": "1"}


def run_all(folder: Path, jobs: dict[str, tuple[Path, Path, list[str]]]) -> dict[str, SimpleNamespace]:
    """Run the checklists of several trees: name -> status, output and the five marks."""
    lines = []
    for name, (tree, cwd, arguments) in jobs.items():
        (folder / name).mkdir()
        lines.append((str(folder / name), str(tree), str(cwd), arguments))
    command = [sys.executable, "-c", RUNNER]
    here = environment(folder) | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, input=json.dumps(lines), text=True, check=True, env=here, cwd=folder)
    results = {}
    for name in jobs:
        stdout, stderr, status = ((folder / name / kind).read_text("utf-8") for kind in ("stdout", "stderr", "status"))
        marks = {n: mark for mark, n in re.findall(rf"^([✓✗]) ({'|'.join(map(re.escape, NAMES))})$", stdout, re.M)}
        results[name] = SimpleNamespace(stdout=stdout, stderr=stderr, status=int(status), marks=marks)
    return results


# -- on a whole tree -------------------------------------------------------------------------------------------------


def test_a_whole_tree_passes_in_an_empty_folder(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    program = [sys.executable, str(ROOT / "pre_training_checklist.py")]
    result = subprocess.run(program, cwd=here, env=environment(home), capture_output=True, text=True, check=False)
    assert result.stdout.startswith(READY)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.count("  ✗ labels: data/CSL_Daily/labels.") == 3
    assert "  ✗ mT5: pretrained_weight/mt5-base has no config.json, spiece.model\n" in result.stdout
    assert re.fullmatch(r"✗ Not ready\. Labels are missing: .* mT5 is missing: .*", result.stdout.splitlines()[-1])
    assert not [*home.iterdir(), *here.iterdir()]


def test_help_and_its_own_flags_come_before_anything_heavy():
    code = "import sys, pre_training_checklist as c\ntry: c.main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"

    def run(*flags, **variables):
        command = [sys.executable, "-c", code, *flags]
        here = environment(ROOT) | variables
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=here)

    assert "the locale's, here zh" in run("--help", LANG="zh_CN.UTF-8").stdout
    page = run("--page", "no_folder/look.html")
    assert (page.returncode, page.stdout) == (1, "False\n")
    assert "error: --page no_folder/look.html: its folder does not exist." in page.stderr


def test_flags_that_cannot_be_read_are_no_reason_to_be_ready(monkeypatch, capsys):
    """The checks say what is broken, but not if it is none of the code that they run."""
    monkeypatch.setattr(pre_training_checklist, "CHECKS", {})
    monkeypatch.setattr(pre_training_checklist, "run_flags", lambda *_: 1 / 0)
    assert pre_training_checklist.main([]) == 1
    assert "✗ ZeroDivisionError: division by zero" in (said := capsys.readouterr().out)
    assert "Not ready" in said


# -- faults put in ---------------------------------------------------------------------------------------------------

# name -> file, what stands there, what is put in its place; the lines that must fail, and what is said of the first.
FAULTS = {
    "default": (
        "utils.py",
        "default=0.1,",
        "default=None,",
        "utils.py fine_tuning.py",
        "--text_dropout_p: None; after",
    ),
    "padding": (
        "models.py",
        "if self.config.uni_sign_padding else mask",
        "if True else mask",
        "models.py",
        "padding changes a clip's result",
    ),
    "import": (
        "fine_tuning.py",
        "import argparse\n",
        "import argparse\nimport no_such_package\n",
        "fine_tuning.py",
        "No module named 'no_such_package' (fine_tuning.py, line ",
    ),
    "positions": (
        "temporal_alignment.py",
        'yield frame, values.get("description")',
        'yield document.index(entry), values.get("description")',
        "datasets.py",
        "descriptions do not lie on the frames that their file names say",
    ),
    "unpadded": (
        "clips/batch.py",
        "_pad(sample.has_description, 0, longest)",
        "sample.has_description",
        "datasets.py models.py fine_tuning.py",
        "a batch does not pad poses, descriptions and indicators alike",
    ),
    "dictionary": (
        "config.py",
        "@dataclass(frozen=True)\nclass ModelConfig",
        'description_dirs["CSL_Daily"] = "./descriptions"\n\n\n@dataclass(frozen=True)\nclass ModelConfig',
        "config.py",
        "description_dirs['CSL_Daily'] is './descriptions', but its record in DATASETS says './description/CSL-Daily",
    ),
    "comma": (
        "config.py",
        'description_dir="./description/CSL-Daily/split_data",',
        'description_dir="./description/CSL-Daily/split_data"',
        "config.py utils.py fine_tuning.py models.py datasets.py",
        "(config.py, line ",
    ),
}


def tree_with(folder: Path, file: str = "", old: str = "", new: str = "") -> Path:
    """Copy the program; in one file, put `new` in the place of `old`."""
    for path in (path for pattern in ("*.py", "*/*.py") for path in ROOT.glob(pattern)):
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    if file:
        text = (folder / file).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{file} has changed: the fault that is put in needs another place"
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    jobs = {}
    for name, (file, old, new, *_) in FAULTS.items():
        jobs[name] = (tree_with(folder / f"{name}_tree", file, old, new), folder, [])
    return run_all(folder, jobs)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_fails_the_line_that_names_it(broken, name):
    *_, failing, reason = FAULTS[name]
    result = broken[name]
    assert list(result.marks) == NAMES  # all are reported, in order
    assert {n.split()[0] for n, mark in result.marks.items() if mark == "✗"} == set(failing.split())
    assert result.status == 1
    assert "系统准备就绪" not in result.stdout
    first = next(n for n in NAMES if n.startswith(failing.split()[0]))
    told = result.stdout.split(f"✗ {first}\n")[1].splitlines()
    assert re.match(r"    reason: .", told[0])
    assert reason in told[0]
    assert re.match(r"    cure:   .", told[1])
    assert result.stderr == ""
    assert result.stdout.splitlines()[-1].startswith("✗ Not ready. A check of the code failed: ")


def test_cures_name_the_place(broken):
    assert "    cure:   pip install no_such_package, or " in broken["import"].stdout
    assert broken["comma"].stdout.count("    cure:   Mend config.py or ") == 5


def test_the_project_may_be_reached_through_a_link(tmp_path, monkeypatch):
    """Then the paths in a traceback go through it, those of the program itself at least."""
    (tmp_path / "link").symlink_to(ROOT, target_is_directory=True)
    monkeypatch.setattr(pre_training_checklist, "__file__", str(tmp_path / "link" / "pre_training_checklist.py"))
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("\n1 / 0", tmp_path / "link" / "utils.py", "exec"))
    assert pre_training_checklist.place_of(caught.value) == ("utils.py", 2)


# -- data ------------------------------------------------------------------------------------------------------------

UNSEEN = "(score above 0.3). If the pictures show it, see whether the points have COCO-WholeBody's order"
UNSEEN_PARTS = {"body": "!", "left hand": "!", "right hand": "!", "face": "·"}
DAMAGED = ["{", json.dumps([{"filename": "000001.jpg", "description": "Error code: 503"}])]


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory, corpus):
    """What the data section says of folders with known content."""
    folder = tmp_path_factory.mktemp("data")
    known, whole, mine, theirs = (folder / name for name in ("known", "whole", "mine", "theirs"))

    poses, descriptions = write_split(known, "train", 4)
    for name, content in zip(("train0", "train1", "train2"), [MIXED, *DAMAGED], strict=True):
        (descriptions / f"{name}.json").write_text(content, encoding="utf-8")
    poses, descriptions = write_split(known, "dev", 4)
    (poses / "dev1.pkl").unlink()
    (poses / "dev2.pkl").write_bytes(b"no pickle")
    descriptions.rmdir()

    shutil.copytree(corpus, whole)
    weights = whole / "weights.pth"
    import torch

    torch.save({"model": {"part_para": torch.zeros(7)}}, weights)

    # Somebody's config.py with absolute paths, and real data whose names are like the sample corpus's.
    poses, _ = write_split(theirs, "train", 1)
    precious = poses / "S000001_P0000_T00.pkl"
    precious.write_bytes(b"precious")
    labels = (theirs / "data/CSL_Daily/labels.train").read_bytes()
    tree_with(mine)
    text = (mine / "config.py").read_text(encoding="utf-8")
    (mine / "config.py").write_text(re.sub(r'(f|=|= |: )"\./', rf'\1"{theirs}/', text), encoding="utf-8")

    (folder / "run/resume/step_00000007").mkdir(parents=True)
    resumed = ("--output_dir", "run", "--resume", "auto")

    results = run_all(
        folder,
        {
            "known_": (ROOT, known, []),
            "strict": (ROOT, folder, ["--strict"]),
            "whole_": (ROOT, folder, ["--root", str(whole), "--strict", "--full", "--page", "look.html"]),
            "weights": (ROOT, folder, ["--root", str(whole), "--finetune", str(weights)]),
            "resumed": (ROOT, folder, ["--root", str(whole), "--finetune", "gone.pth", *resumed]),
            "chinese": (ROOT, known, ["--lang", "zh"]),
            "mine_": (mine, folder, []),
        },
    )
    results["whole_"].page = (folder / "look.html").read_text(encoding="utf-8")
    results["mine_"].untouched = (
        precious.read_bytes() == b"precious" and labels == (theirs / "data/CSL_Daily/labels.train").read_bytes()
    )
    results["mine_"].theirs = theirs
    results["mine_"].folders = sorted(path.name for path in theirs.iterdir())
    assert all(result.stderr == "" for result in results.values())
    return results


def section(stdout: str, title: str) -> list[str]:
    return re.search(rf"^{title}\n((?:  .*\n)*)", stdout, re.M)[1].splitlines()


def test_numbers_are_those_of_the_files(looked_at):
    result = looked_at["known_"]
    assert result.stdout.startswith(READY)
    assert result.status == 1
    poses, descriptions = "dataset/CSL_Daily/pose_format", "description/CSL-Daily/split_data"
    assert section(result.stdout, "CSL_Daily train") == [
        "  ✓ labels: 4 clips in data/CSL_Daily/labels.train",
        f"  ✓ poses: 4 found, 0 missing, 0 unreadable in {poses}",
        "  · clips of 10 to 10 frames, median 10; good points: body 0%, left hand 0%, right hand 0%, face 0%",
        *(f"  {mark} {part}: 0.0% of the points are good {UNSEEN}" for part, mark in UNSEEN_PARTS.items()),
        f"  ! descriptions: 3 found, 1 missing, 1 unreadable in {descriptions}/train",
        "  · entries: 10 = 2 error texts, 1 blank, 1 not text, 1 bad frame, 1 out of range, 1 duplicates, 3 frames",
        "  · with a text of their own: 25.0% of the clips, 7.5% of the frames",
    ]
    dev = section(result.stdout, "CSL_Daily dev")
    assert dev[1] == f"  ✗ poses: 3 found, 1 missing, 1 unreadable in {poses}; the first: dev1.pkl is missing"
    assert dev[-1] == f"  ! descriptions: {descriptions}/dev does not exist; --use_descriptions needs it"
    assert section(result.stdout, "CSL_Daily test") == ["  ✗ labels: data/CSL_Daily/labels.test does not exist"]
    verdict = result.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"✗ Not ready\. Poses are missing or .* Labels are missing: .* mT5 is missing: .* Lines marked !: 8; .*",
        verdict,
    )


def test_what_follows_the_checks_is_in_one_language(looked_at):
    english, chinese = looked_at["known_"], looked_at["chinese"]
    marks = [re.findall(r"^ *([✓·!✗]) ", result.stdout, re.M) for result in (english, chinese)]
    assert marks[0] == marks[1]
    assert chinese.stdout.splitlines()[-1].startswith("✗ 未就绪。 姿态缺失或损坏：")
    assert not re.search(r"[一-鿿]", english.stdout.removeprefix(READY))


def test_strict_makes_warnings_an_error(looked_at):
    assert looked_at["strict"].stdout.startswith(READY)
    assert looked_at["strict"].status == 1
    assert looked_at["whole_"].status == 0
    assert looked_at["whole_"].stdout.endswith("\n\n✓ Ready: the run can start.\n")


def test_a_page_shows_the_data(looked_at):
    page = looked_at["whole_"].page
    assert "  ✓ look.html written\n" in looked_at["whole_"].stdout
    assert all(line.split("'")[0][2:] in page for line in section(looked_at["whole_"].stdout, "CSL_Daily train"))
    assert page.count('class="film"') == 15


def test_texts_splits_and_weights_of_a_good_corpus(looked_at):
    out = looked_at["whole_"].stdout
    assert "a perfect model gets bleu4 100.0; 0.0% are cut after 50 tokens" in section(out, "CSL_Daily dev")[-1]
    assert section(out, "splits") == ["  ✓ no clip is in two of them"]
    assert "d_model 64, 1 layers" in section(out, "weights")[0]


def test_weights_that_do_not_fit_are_told(looked_at):
    (line,) = section(looked_at["weights"].stdout, "checkpoint")
    assert re.match(r"  ✗ --finetune: .*weights.pth does not fit this model: missing: fusion_gcn_modules\.", line)
    assert looked_at["weights"].status == 1


def test_weights_of_a_run_that_is_resumed_may_be_gone(looked_at):
    assert "gone.pth" not in looked_at["resumed"].stdout
    assert looked_at["resumed"].status == 0


def test_absolute_paths_in_the_configuration_are_read_and_never_written(looked_at):
    result = looked_at["mine_"]
    assert result.stdout.startswith(READY)
    assert f"labels: 1 clips in {result.theirs}/data/CSL_Daily/labels.train" in result.stdout
    assert f"mT5: {result.theirs}/pretrained_weight/mt5-base has no config.json" in result.stdout
    assert result.untouched
    assert result.folders == ["data", "dataset", "description"]
