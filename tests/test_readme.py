"""What the two READMEs say is so: commands parse, flags are the parser's, files exist, and both say the same."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import describe
import fine_tuning
import inference
import pre_training_checklist
import utils
from clips.labels import read_labels
from pose.keypoints import read_pose
from tests.helpers.corpus import write_small_corpus
from tools import demo_page, export, extract_poses, pack_dataset, report

ROOT = Path(__file__).resolve().parents[1]
ENGLISH, CHINESE = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
both = pytest.mark.parametrize("readme", [ENGLISH, CHINESE], ids=["en", "zh"])

DOCUMENTED = """\
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --output_dir ./output_baseline
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --use_descriptions --text_dropout_p 0.1 --output_dir ./output_multimodal
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --use_descriptions --text_encoder_freeze --output_dir ./output_fusion_only
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --use_descriptions --text_dropout_p 0.1 --fusion_checkpoint ./pretrained_fusion.pth --output_dir ./output_finetune
python fine_tuning.py --dataset CSL_Daily --use_descriptions --finetune ./output_multimodal/best_checkpoint.pth --eval
python pre_training_checklist.py
""".splitlines()  # noqa: E501 -- as the manual has them
OTHER_FLAGS = {"--local-dir", "--strict", "--full", "--out", "--texts", "--num_gpus", "--nproc-per-node", "--help"}


def fences(readme):
    """(language, content) of every code block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", readme, re.M | re.S)


def prose(readme):
    return re.sub(r"^```.*?^```$", "", readme, flags=re.M | re.S)


def commands(readme):
    """Every command of the shell blocks on a line of its own, without comments."""
    text = "".join(content for language, content in fences(readme) if language == "sh").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def of_fine_tuning(readme):
    """(launcher, flags) of every command that trains or evaluates."""
    words = [shlex.split(command) for command in commands(readme) if "fine_tuning.py" in command]
    return [(line[: line.index("fine_tuning.py")], line[line.index("fine_tuning.py") + 1 :]) for line in words]


def rows(readme, first_cell):
    """Cells of the table rows whose first cell looks so."""
    lines = [line for line in readme.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if re.match(first_cell, row[0])]


def headings(readme):
    return re.findall(r"^(#+) (.*)$", prose(readme), re.M)


def names(cell):
    return re.findall(r"`([\w/{}.]+)`", cell)


# -- commands ----------------------------------------------------------------------------------------------------------


@both
def test_documented_commands_stand_there(readme):
    assert set(DOCUMENTED) <= set(commands(readme))


@both
def test_commands_parse(readme):
    lines = of_fine_tuning(readme)
    assert {launcher[0] for launcher, _ in lines} == {"python", "deepspeed", "torchrun"}
    for launcher, flags in lines:
        assert launcher in (["python"], ["deepspeed", "--num_gpus", "4"], ["torchrun", "--nproc-per-node", "4"])
        utils.parse_args(flags)
    for command in commands(readme):
        if "describe.py" in command and " audit " not in command:
            describe.parse_args(shlex.split(command)[2:])
        if "tools.export" in command:
            export.parse_args(shlex.split(command)[3:])
        if "tools.demo_page" in command:
            demo_page.parse_args(shlex.split(command)[3:])
        if "inference.py" in command:
            inference.parse_args(shlex.split(command)[2:])
        if "tools.report" in command:
            report.parse_args([*shlex.split(command)[3:], "--out", "report.html"])
        if "tools.extract_poses" in command:
            extract_poses.parse_args(shlex.split(command)[3:])
        if "pre_training_checklist.py" in command:
            utils.parse_args([word for word in shlex.split(command)[2:] if word not in ("--strict", "--full")])


def test_commands_of_the_guide_to_videos_parse():
    guide = (ROOT / "docs" / "INFERENCE.md").read_text(encoding="utf-8")
    lines = re.findall(r"^ *(?:\$ )?python (inference\.py|-m tools\.extract_poses) (.*)$", guide, re.M)
    lines += re.findall(r"`python (inference\.py|-m tools\.extract_poses) ([^`]*)`", guide)
    assert len(lines) >= 8
    for program, flags in lines:
        {"inference.py": inference, "-m tools.extract_poses": extract_poses}[program].parse_args(shlex.split(flags))


@both
def test_programs_and_targets_exist(readme):
    for command in commands(readme):
        if (program := re.match(r"python (?:-m (tools\.\w+)|(\S+)\.py)", command)) is not None:
            name = program[2] or program[1].replace(".", "/")
            assert (ROOT / f"{name}.py").is_file(), command
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {*re.findall(r"`make ([\w-]+)", readme), *re.findall(r"^make ([\w-]+)$", readme, re.M)}
    assert targets >= {"demo", "test", "check"}
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


@both
def test_the_published_recipe(readme):
    recipes = [(launcher, flags) for launcher, flags in of_fine_tuning(readme) if "./output_published_recipe" in flags]
    ((launcher, flags),) = recipes
    args = utils.parse_args(flags)
    assert args.batch_size * args.gradient_accumulation_steps * int(launcher[-1]) == 32
    assert (args.lr, args.epochs, args.opt, args.opt_eps, args.weight_decay) == (3e-4, 20, "adamw", 1e-9, 1e-4)
    assert (args.sched, args.warmup_epochs, args.gradient_clipping, args.label_smoothing) == ("cosine", 0, 1.0, 0.2)
    assert (args.dtype, args.zero_stage, args.num_beams) == ("bf16", 2, 4)


@both
def test_example_of_a_data_set_can_be_read(readme, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [content for language, content in fences(readme) if language == "python"]
    exec(compile(code, "README", "exec"), {})
    label = read_labels("my_data/labels.csv")["clip1"]
    assert label["text"] == "Guten Tag, wie geht es dir?"
    assert len(read_pose("my_data/poses/clip1.npz", label["frames"])) == 40


# -- flags -------------------------------------------------------------------------------------------------------------


@both
def test_every_flag_has_one_row_with_its_default(readme):
    documented = {}
    for first, default, _ in rows(readme, r"`--[\w-]+`(, `--[\w-]+`)*$"):
        flags = re.findall(r"`(--[\w-]+)`", first)
        assert not set(flags) & set(documented)
        documented |= dict.fromkeys(flags, default)
    actions = [action for action in utils.get_args_parser()._actions if action.dest != "help"]
    assert {action.option_strings[0] for action in actions} | {"--no-pin-mem"} == set(documented)
    words = {"off": False, "关": False, "on": True, "开": True, "-": ""}
    for action in actions:
        said = documented[action.option_strings[0]]
        if action.default is None:
            assert f"default: {said}" in action.help, action.option_strings
        elif isinstance(action.default, int | float) and said not in words:
            assert float(said) == action.default, action.option_strings
        else:
            assert words.get(said, said) == action.default, action.option_strings


@both
def test_no_flag_is_made_up(readme):
    programs = (utils, describe, inference, pack_dataset, extract_poses, report, export, demo_page)
    parsers = [program.get_args_parser() for program in programs]
    known = {name for parser in parsers for action in parser._actions for name in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", readme)) <= known | OTHER_FLAGS


@both
def test_flags_of_the_manual_are_those_of_the_checklist(readme):
    first_cells = " ".join(row[0] for row in rows(readme, r"`--"))
    for flag in pre_training_checklist.FLAGS.split():
        name = flag.partition("=")[0]
        assert f"`--{name}`" in first_cells or f"`--{name.replace('_', '-')}`" in first_cells


# -- files -------------------------------------------------------------------------------------------------------------


def slug(heading):
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@both
def test_links_lead_somewhere(readme):
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(links) > 5
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        assert not path or (ROOT / path).is_file(), link
        text = (ROOT / path).read_text(encoding="utf-8") if path and anchor else readme
        assert not anchor or anchor in {slug(heading) for _, heading in headings(text)}, link


@both
def test_files_that_are_named_exist(readme):
    files = set(re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|toml|md))`", readme)) | {".ci/run", "requirements.txt"}
    assert files >= {"config.py", "pyproject.toml", "tests/test_house.py"}
    assert not [file for file in files if not (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory):
    """The folder of a run that found an older one there, and then was evaluated."""
    corpus, out = (tmp_path_factory.mktemp("readme") / name for name in ("sample", "out"))
    write_small_corpus(corpus, {"train": 4, "dev": 2, "test": 2})
    out.mkdir()
    (out / "log.txt").write_text("{}\n")
    flags = (
        f"--root {corpus} --output_dir {out} --use_descriptions --hidden_dim 16 --epochs 1 --batch-size 1 --dtype fp32 "
    )
    flags += "--num_workers 0 --num_beams 1 --max_new_tokens 2 --gradient-accumulation-steps 2 --quick_break 1"
    fine_tuning.main(utils.parse_args(flags.split()))
    fine_tuning.main(utils.parse_args([*flags.split(), "--eval", "--finetune", str(out / "best_checkpoint.pth")]))
    return out


@both
def test_a_run_leaves_what_the_table_says(readme, left_behind):
    table = {name: cells[1] for cells in rows(readme, r"`[\w{}.]+[/}\w]`") for name in names(cells[0])}
    table = {name: cell for name, cell in table.items() if not name.endswith(".py")}
    said = {name.replace("{epoch}", "0").replace("{split}", split) for name in table for split in ("dev", "test")}
    there = {f"{path.name}/" if path.is_dir() else path.name for path in left_behind.iterdir()}
    assert said == there
    for file in ("log.txt", "steps.jsonl"):
        line = json.loads((left_behind / file).read_text().splitlines()[0])
        assert names(table[file]) == list(line)
    keys = re.findall(r'"(\w+)"', table["checkpoint_{epoch}.pth"])
    assert keys == list(torch.load(left_behind / "checkpoint_0.pth", weights_only=True))


# -- the two of them ---------------------------------------------------------------------------------------------------


def test_both_have_the_same_plan():
    assert [level for level, _ in headings(ENGLISH)] == [level for level, _ in headings(CHINESE)]
    assert len(rows(ENGLISH, "")) == len(rows(CHINESE, ""))
    assert len(re.findall(r"^- ", ENGLISH, re.M)) == len(re.findall(r"^- ", CHINESE, re.M))


def test_both_have_the_same_code():
    code = [
        [(language, re.sub(r"^#.*\n", "", content, flags=re.M)) for language, content in fences(readme)]
        for readme in (ENGLISH, CHINESE)
    ]
    assert code[0] == code[1]


def test_both_have_the_same_numbers():
    """All with more than one digit; the smaller ones may be words."""
    found = [re.findall(r"(?<![A-Za-z0-9.])\d[\d,.]*\d(?![A-Za-z])", prose(readme)) for readme in (ENGLISH, CHINESE)]
    assert sorted(found[0]) == sorted(found[1])


@both
def test_nothing_of_one_machine(readme):
    mirrors = {"hf-mirror.com"} if readme == CHINESE else set()
    places = {"github.com", "huggingface.co", "ustc-slr.github.io"} | mirrors
    assert set(re.findall(r"://([^/)`\s]+)", readme)) == places
    assert not re.search(r"(?<![\w.])/(work|home|root|tmp|mnt|data)\b", readme)
