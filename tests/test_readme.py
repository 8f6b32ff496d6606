"""What the documents say is so: commands parse, flags are the parsers', links resolve, a run leaves what they list.

Their code blocks are run in test_docs.py.
"""

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

import describe
import fine_tuning
import inference
import utils
from tests.helpers.corpus import write_small_corpus
from tools import ablate, benchmark, demo_page, export, extract_poses, import_table, picture

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("*.md", "description/*.md", "docs/*.md", "docs/zh-CN/*.md")
DOCUMENTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for p in PLACES for path in ROOT.glob(p)}
PAIRS = {  # English -> Chinese
    "README.md": "README.zh-CN.md",
    **{name.replace("docs/zh-CN/", "docs/"): name for name in DOCUMENTS if name.startswith("docs/zh-CN/")},
}
every = pytest.mark.parametrize("document", DOCUMENTS)
readmes = pytest.mark.parametrize("document", ["README.md", "README.zh-CN.md"])
guides = pytest.mark.parametrize("document", ["docs/TRAINING.md", "docs/zh-CN/TRAINING.md"])

DOCUMENTED = """\
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --output_dir ./output_baseline
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --use_descriptions --text_dropout_p 0.1 --output_dir ./output_multimodal
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --use_descriptions --text_encoder_freeze --output_dir ./output_fusion_only
python fine_tuning.py --dataset CSL_Daily --epochs 20 --batch-size 16 --use_descriptions --text_dropout_p 0.1 --fusion_checkpoint ./pretrained_fusion.pth --output_dir ./output_finetune
python fine_tuning.py --dataset CSL_Daily --use_descriptions --finetune ./output_multimodal/best_checkpoint.pth --eval
python pre_training_checklist.py
""".splitlines()  # noqa: E501 -- as the manual has them
PARSERS = {  # of what test_docs.py does not run, and of Chinese documents
    "fine_tuning.py": utils.parse_args,
    "describe.py": describe.parse_args,
    "inference.py": inference.parse_args,
    "-m tools.ablate": ablate.parse_args,
    "-m tools.benchmark": benchmark.parse_args,
    "-m tools.demo_page": demo_page.parse_args,
    "-m tools.export": export.parse_args,
    "-m tools.extract_poses": extract_poses.parse_args,
    "-m tools.import_table": import_table.parse_args,
    "-m tools.picture": picture.parse_args,
}


def fences(text):
    """(language, content) of every code block."""
    return re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S)


def commands(text):
    """(program, flags) of every command, in blocks and in sentences."""
    pattern = r"\b(?:python|deepspeed|torchrun)\b[^`\n]*?(-m tools\.\w+|\b\w+\.py)\b([^`\n&|>]*)"
    found = re.findall(pattern, text.replace("\\\n", " ").replace("$part", "1/64"))
    return [(program, shlex.split(flags, comments=True)) for program, flags in found]


def rows(text, first_cell):
    """Cells of the table rows whose first cell looks so."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if re.match(first_cell, row[0])]


def names(cell):
    return re.findall(r"`([\w/{}.]+)`", cell)


# -- commands ----------------------------------------------------------------------------------------------------------


@readmes
def test_documented_commands_stand_there(document):
    lines = [
        line for language, content in fences(DOCUMENTS[document]) if language == "sh" for line in content.splitlines()
    ]
    assert set(DOCUMENTED) <= set(lines)


@every
def test_commands_parse(document, monkeypatch):
    monkeypatch.setattr(utils, "installed", lambda _package: True)
    for program, flags in commands(DOCUMENTS[document]):
        if program in PARSERS and flags[:1] != ["audit"] and "--help" not in flags:
            PARSERS[program](flags)


@every
def test_programs_and_targets_exist(document):
    for program, _ in commands(DOCUMENTS[document]):
        path = program.removeprefix("-m ").removesuffix(".py").replace(".", "/") + ".py"
        assert path == "tools/NAME.py" or (ROOT / path).is_file()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", DOCUMENTS[document], re.M):
        assert re.search(rf"^{target}:", makefile, re.M)


@guides
def test_the_published_recipe(document):
    (flags,) = [flags for _, flags in commands(DOCUMENTS[document]) if "./output_published_recipe" in flags]
    args = utils.parse_args(flags)
    assert args.batch_size * args.gradient_accumulation_steps * 4 == 32  # on 4 GPUs
    assert (args.lr, args.epochs, args.opt, args.opt_eps, args.weight_decay) == (3e-4, 20, "adamw", 1e-9, 1e-4)
    assert (args.sched, args.warmup_epochs, args.gradient_clipping, args.label_smoothing) == ("cosine", 0, 1.0, 0.2)
    assert (args.dtype, args.zero_stage, args.num_beams) == ("bf16", 2, 4)


# -- flags -------------------------------------------------------------------------------------------------------------


def test_every_flag_has_one_row_with_its_default():
    documented = {}
    for first, default, _ in rows(DOCUMENTS["docs/FLAGS.md"], r"`--[\w-]+`(, `--[\w-]+`)*$"):
        flags = re.findall(r"`(--[\w-]+)`", first)
        assert not set(flags) & set(documented)
        documented |= dict.fromkeys(flags, default)
    actions = [action for action in utils.get_args_parser()._actions if action.help != argparse.SUPPRESS]
    actions = [action for action in actions if action.dest != "help"]
    assert {action.option_strings[0] for action in actions} | {"--no-pin-mem", "--no_length_grouping"} == set(
        documented
    )
    words = {"off": False, "on": True, "-": ""}
    for action in actions:
        said = documented[action.option_strings[0]]
        if action.default is None:
            assert f"default: {said}" in action.help, action.option_strings
        elif isinstance(action.default, list):
            assert [float(word) for word in said.split()] == action.default, action.option_strings
        elif isinstance(action.default, int | float) and said not in words:
            assert float(said) == action.default, action.option_strings
        else:
            assert words.get(said, said) == action.default, action.option_strings


@every
def test_no_flag_is_made_up(document):
    folders = (ROOT, ROOT / "tools", ROOT / "describing")
    sources = [path.read_text(encoding="utf-8") for folder in folders for path in folder.glob("*.py")]
    known = {flag.replace("-", "_") for source in sources for flag in re.findall(r'"(--[a-z][\w-]*)"', source)}
    named = re.findall(r"`(--[a-z][\w-]*)", DOCUMENTS[document])
    known |= {"__help", "__no_length_grouping", "__no_pin_mem"}  # of argparse
    known |= {"__signal", "__no_ssh"}  # of SLURM and of DeepSpeed
    assert not [flag for flag in named if flag.replace("-", "_") not in known]


# -- files -------------------------------------------------------------------------------------------------------------


def anchors(text):
    """What the headings can be linked by."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)]+)\)", DOCUMENTS[document]):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@every
def test_files_that_are_named_exist(document):
    files = re.findall(
        r"`((?:(?:tests|docs)/)?(?:\w+/)?[\w.-]+\.(?:py|toml|md)|requirements\.txt)`", DOCUMENTS[document]
    )
    folders = (ROOT, ROOT / "docs", ROOT / "tools", ROOT / "examples")
    assert not [file for file in files if not any((folder / file).is_file() for folder in folders)]


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory):
    """The folder of a run that found an older one there, and then was evaluated."""
    corpus, out = (tmp_path_factory.mktemp("run") / name for name in ("sample", "out"))
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


@guides
def test_a_run_leaves_what_the_table_says(document, left_behind):
    table = {name: cells[1] for cells in rows(DOCUMENTS[document], r"`[\w{}.]+[/}\w]`") for name in names(cells[0])}
    table = {name: cell for name, cell in table.items() if not name.endswith(".py")}
    said = {name.replace("{epoch}", "0").replace("{split}", split) for name in table for split in ("dev", "test")}
    there = {f"{path.name}/" if path.is_dir() else path.name for path in left_behind.iterdir()}
    assert said == there
    for file in ("log.txt", "steps.jsonl"):
        line = json.loads((left_behind / file).read_text().splitlines()[0])
        assert names(table[file]) == list(line)
    keys = re.findall(r'"(\w+)"', table["checkpoint_{epoch}.pth"])
    assert sorted(keys) == sorted(torch.load(left_behind / "checkpoint_0.pth", weights_only=True))


# -- two languages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("english", PAIRS)
def test_both_languages_have_the_same_code(english):
    both = [fences(re.sub(r"^#.*\n", "", DOCUMENTS[name], flags=re.M)) for name in (english, PAIRS[english])]
    assert both[0] == both[1]
