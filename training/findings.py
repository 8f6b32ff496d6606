"""What the checklist and the start of a run say about data, in English and Chinese; nothing slow is imported."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

LANGUAGES = ("en", "zh")
_DESCRIBE = (
    "Usable descriptions are missing: make them with python describe.py, or drop --use_descriptions.",
    "缺少可用的描述：请用 python describe.py 生成，或去掉 --use_descriptions。",
)
TEXTS = {  # in the order of LANGUAGES; "NAME.cure" is what to do about a line NAME that is marked ✗
    "data": ("data", "数据"),
    "weights": ("weights", "权重"),
    "checkpoint": ("checkpoint", "检查点"),
    "unusable": ("{}", "无法使用：{}"),
    "unusable.cure": ("Mend what the lines marked ✗ name.", "请解决标有 ✗ 的各行所述的问题。"),
    "checks.cure": ("A check of the code failed: mend what it names.", "代码检查未通过：请按其中的 cure 修复。"),
    "labels": ("labels: {} clips in {}", "标签：{} 个片段，位于 {}"),
    "no_labels": ("labels: {} does not exist", "标签：{} 不存在"),
    "no_labels.cure": (
        "Labels are missing: put the files there, or name yours with --root or --dataset_config (docs/DATA.md).",
        "缺少标签：请把文件放到上述位置，或用 --root、--dataset_config 指明（docs/zh-CN/DATA.md）。",
    ),
    "poses": (
        "poses: {} found, {} missing, {} unreadable in {}{}",
        "姿态：找到 {} 个，缺少 {} 个，无法读取 {} 个，位于 {}{}",
    ),
    "poses.cure": (
        "Poses are missing or damaged: put them there, run python -m tools.extract_poses, or remove their labels.",
        "姿态缺失或损坏：请放到上述位置，或用 python -m tools.extract_poses 提取，或从标签中删除这些片段。",
    ),
    "videos": (
        "videos: {} found, {} missing, {} do not fit in {}{}",
        "视频：找到 {} 个，缺少 {} 个，与姿态不符 {} 个，位于 {}{}",
    ),
    "videos.cure": (
        "Videos are missing or do not fit their poses: put the right ones there, or drop --rgb_support.",
        "视频缺失或与姿态不符：请放入正确的视频，或去掉 --rgb_support。",
    ),
    "first": ("; the first: {}", "；第一个：{}"),
    "missing": ("{} is missing", "缺少 {}"),
    "descriptions": (
        "descriptions: {} found, {} missing, {} unreadable in {}{}",
        "描述：找到 {} 个，缺少 {} 个，无法读取 {} 个，位于 {}{}",
    ),
    "descriptions.cure": _DESCRIBE,
    "useless": ("; not one text that can be used", "；没有一条可用的文本"),
    "no_descriptions": (
        "descriptions: {} does not exist; --use_descriptions needs it",
        "描述：{} 不存在；--use_descriptions 需要它",
    ),
    "no_descriptions.cure": _DESCRIBE,
    "entries": ("entries: {} = {}", "条目：{} = {}"),
    "frames": ("{} frames", "{} 帧"),
    "error_texts": ("{} error texts", "{} 错误文本"),
    "blank": ("{} blank", "{} 空白"),
    "not_text": ("{} not text", "{} 非文本"),
    "bad_frame": ("{} bad frame", "{} 帧号错误"),
    "out_of_range": ("{} out of range", "{} 超出片段"),
    "duplicates": ("{} duplicates", "{} 重复"),
    "seen": (
        "clips of {} to {} frames, median {:g}; good points: body {:.0%}, left hand {:.0%}, right hand {:.0%}, "
        "face {:.0%}",
        "片段长 {} 到 {} 帧，中位数 {:g}；有效点：身体 {:.0%}，左手 {:.0%}，右手 {:.0%}，脸 {:.0%}",
    ),
    **{
        f"unseen_{part}": (
            f"{english}: {{:.1%}} of the points are good (score above 0.3). If the pictures show it, see whether the "
            "points have COCO-WholeBody's order",
            f"{chinese}：只有 {{:.1%}} 的点有效（置信度高于 0.3）。若画面中有该部位，请检查点的顺序是否为 "
            "COCO-WholeBody",
        )
        for part, english, chinese in (
            ("body", "body", "身体"),
            ("left", "left hand", "左手"),
            ("right", "right hand", "右手"),
            ("face_all", "face", "脸"),
        )
    },
    "few_hands": (
        "only {:.0%} of the frames have a hand that is found. Look at pictures (python -m tools.extract_poses --look): "
        "blur, little light, or the wrong person? Another extractor may see more",
        "只有 {:.0%} 的帧检测到手。请查看图像（python -m tools.extract_poses --look）：是否模糊、光线不足或选错了人？"
        "换一种提取器也许更好",
    ),
    "above_one": (
        "scores reach {:.3g}, and most are above 1, so that few count as bad (0.3 or less). Leave them if they are "
        "rtmlib's, else divide by their scale",
        "置信度最大 {:.3g}，且多数大于 1，几乎没有点会被判为无效（不高于 0.3）。若来自 rtmlib 请保持不变，"
        "否则请除以其尺度",
    ),
    "short": (
        "{} clips have fewer than {} frames, the first is {}. See whether it is cut, or has people before frames",
        "{} 个片段少于 {} 帧，第一个是 {}。请检查是否被截断，或数组中人的轴是否在帧之前",
    ),
    "tokenized": (
        "texts: {:.0%} are changed by the tokenizer{}; a perfect model gets {} {:.1f}; {:.1%} are cut after {} tokens, "
        "the longest has {}",
        "文本：{:.0%} 会被分词器改变{}；完美模型的 {} 为 {:.1f}；{:.1%} 在 {} 个 token 后被截断，最长 {} 个",
    ),
    "lost": (
        "a perfect model gets {} {:.1f} only. Write the labels as the tokenizer does",
        "完美模型的 {} 也只有 {:.1f}。请按分词器的写法书写标签",
    ),
    "unspaced": (
        "the sentences have no spaces between words, so BLEU-4 is 0 even for a perfect model: set "
        'text_unit = "char" in the data set\'s record',
        '句子不用空格分词，完美模型的 BLEU-4 也是 0：请在数据集的记录中设置 text_unit = "char"',
    ),
    **{
        f"few_{unit}s": (
            f"no sentence has 4 {english}, so BLEU-4 measures nothing: a perfect model has 0, one that writes too much "
            "has more. Go by chrf and rouge_l; the best epoch is chosen by BLEU-4, then by the lowest loss",
            f"没有一句达到 4 个{chinese}，BLEU-4 没有意义：完美模型为 0，写得过长的反而更高。请看 chrf 和 rouge_l；"
            "最佳轮次按 BLEU-4、再按最低损失选取",
        )
        for unit, english, chinese in (("word", "words", "词"), ("char", "characters", "字"))
    },
    "cut": (
        "{} of {} targets have more than {} tokens: {} is learned up to {!r}. Add --max_target_tokens {}",
        "{}/{} 个目标超过 {} 个 token：{} 只学到 {!r}。请加 --max_target_tokens {}",
    ),
    "from_one": (
        "descriptions count frames from 1, not from 0, so that each goes to the next frame. Renumber them, and let "
        "description_dir name the copy: {}",
        "描述的帧号从 1 而不是 0 开始，每条都会错位到下一帧。请重新编号，并让 description_dir 指向新文件夹：{}",
    ),
    "told": (
        "descriptions: the keypoints of {} clips tell {:.0%} of their own texts, {:.0%} of those of other clips",
        "描述：{} 个片段的关键点能解释各自文本的 {:.0%}，其他片段文本的 {:.0%}",
    ),
    "wrong_texts": (
        "descriptions do not belong to their clips: the keypoints of {} clips tell {:.0%} of their own texts and "
        "{:.0%} of those of other clips. See whether the files' names and frames are those of these clips",
        "描述与片段不符：{} 个片段的关键点能解释各自文本的 {:.0%}，其他片段文本的 {:.0%}。请检查文件名和帧号是否属于"
        "这些片段",
    ),
    "wrong_texts.cure": (
        "Descriptions are those of other clips: let description_dir name the right ones, or add "
        "--description_alignment 0.",
        "描述属于其他片段：请让 description_dir 指向正确的描述，或加上 --description_alignment 0。",
    ),
    "page": ("A look at the data", "数据一览"),
    "written": ("{} written", "已写入 {}"),
    "lengths": ("Lengths of the clips, up to {} frames:", "片段长度，最长 {} 帧："),
    "ranked": (
        "Clips from the fewest good points to the most; the right hand and arm are red, the left blue:",
        "片段按有效点从少到多排列；右手和右臂为红色，左边为蓝色：",
    ),
    "clip": (
        "{} frames; good points: body {:.0%}, left hand {:.0%}, right hand {:.0%}, face {:.0%}",
        "{} 帧；有效点：身体 {:.0%}，左手 {:.0%}，右手 {:.0%}，脸 {:.0%}",
    ),
    "splits": ("splits", "数据划分"),
    "apart": ("no clip is in two of them", "没有片段同时属于两个划分"),
    "shared_names": (
        "{} of {} clips of {} have a name that {} has, too, such as {}. Take them out of one of the two",
        "{}/{} 个 {} 片段与 {} 重名，例如 {}。请从其中一个删除",
    ),
    "shared_poses": (
        "{} of {} clips of {} have frames of a pose file that {} has, too, such as {}. Take them out of one of the two",
        "{}/{} 个 {} 片段与 {} 共用姿态文件中的帧，例如 {}。请从其中一个删除",
    ),
    "shared_texts": (
        "{} of {} clips of {} have a text that {} has, too, such as {}",
        "{}/{} 个 {} 片段与 {} 文本相同，例如 {}",
    ),
    "coverage": (
        "with a text of their own: {:.1%} of the clips, {:.1%} of the frames",
        "有自己的文本：{:.1%} 的片段，{:.1%} 的帧",
    ),
    "estimated": (
        "estimated: {} of {} poses and {} of {} description files were opened; --full opens all",
        "以上为估计：打开了 {}/{} 个姿态文件、{}/{} 个描述文件；--full 会打开全部",
    ),
    "mt5": ("mT5: {}: d_model {}, {} layers, {:.1f} M parameters", "mT5：{}：d_model {}，{} 层，{:.1f} M 参数"),
    "no_mt5": ("mT5: {} has no {}", "mT5：{} 中没有 {}"),
    "no_mt5.cure": (
        "mT5 is missing: hf download google/mt5-base --local-dir {0}, or name its folder with --mt5_path.",
        "缺少 mT5：请用 hf download google/mt5-base --local-dir {0} 下载，或用 --mt5_path 指明所在目录。",
    ),
    "fits": ("{}: readable, and fits", "{}：可以读取，与模型相符"),
    "memory": (
        "training needs about {:.1f} GiB a GPU, an estimate: {:.1f} weights and optimizer, {:.1f} for {} clips of {} "
        "frames{}",
        "训练约需每块 GPU {:.1f} GiB（估计）：权重和优化器 {:.1f}，激活 {:.1f}（{} 个片段，各 {} 帧{}）",
    ),
    "texts": (" and {:.0f} texts", "、{:.0f} 条文本"),
    "no_gpu": ("no GPU: a CPU run is possible, and slow", "没有 GPU：可以用 CPU 运行，但很慢"),
    "gpu": ("GPU {}: {}, {:.1f} GiB{}", "GPU {}：{}，{:.1f} GiB{}"),
    "save_memory": (
        ": try a smaller --batch-size or --max_length, or --offload",
        "：可以减小 --batch-size 或 --max_length，或加 --offload",
    ),
    "ready": ("Ready: the run can start.", "就绪：可以开始运行。"),
    "not_ready": ("Not ready.", "未就绪。"),
    "warnings": ("Lines marked !: {}; --strict makes them errors.", "{} 行标有 !；加 --strict 时视为错误。"),
}


@dataclasses.dataclass
class Report:
    """Prints findings line by line, and in the end the verdict."""

    language: str = LANGUAGES[0]
    write: Callable[[str], None] = functools.partial(print, flush=True)
    warnings: int = 0  # lines marked "!"
    said: dict[str, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)  # section -> marks and texts
    cures: list[str] = dataclasses.field(default_factory=list)  # what has to be done before the run can start

    def text(self, name: str, *values: object) -> str:
        """Return a text of the table in the report's language."""
        return TEXTS[name][LANGUAGES.index(self.language)].format(*values)

    def say(self, mark: str, name: str, *values: object) -> None:
        """Print a line: "✓" in order, "·" good to know, "!" worth mending, "✗" the run cannot start."""
        text = self.text(name, *values)
        self.write(f"  {mark} {text}")
        if self.said:
            next(reversed(self.said.values())).append((mark, text))
        self.warnings += mark == "!"
        if mark == "✗":
            self.require(f"{name}.cure", *values)

    def say_all(self, lines: Iterable[tuple[str, str, Sequence[Any]]]) -> None:
        """Print some lines: mark, name and values of each."""
        for mark, name, values in lines:
            self.say(mark, name, *values)

    def require(self, name: str, *values: object) -> None:
        """Note what has to be done before the run can start; the verdict says it once."""
        cure = self.text(name, *values)
        self.cures += [cure] if cure not in self.cures else []

    @contextlib.contextmanager
    def section(self, title: str) -> Iterator[None]:
        """Print a title; an error in the block becomes a line."""
        self.write(title)
        self.said[title.strip()] = []
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- whatever is broken here, the rest is worth reading
            kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
            self.say("✗", "unusable", kind + " ".join(str(error).split())[:400])

    def conclude(self, strict: bool) -> bool:
        """Print the verdict; return whether the run can start. With `strict`, warnings are errors."""
        warnings = [self.text("warnings", self.warnings)] if self.warnings else []
        ready = not self.cures and not (strict and warnings)
        verdict = ["✓", self.text("ready")] if ready else ["✗", self.text("not_ready"), *self.cures]
        self.write("\n" + " ".join(verdict + warnings))
        return ready
