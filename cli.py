"""Shared by all command lines: flags, one-line errors, progress bars, worker processes. Nothing slow is imported."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib.util
import logging
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from config import DATASETS

if TYPE_CHECKING:
    from tqdm import tqdm

S = TypeVar("S")
T = TypeVar("T")

AHEAD = 4  # maximum chunks per process that `in_processes` computes in advance


def spellings(*names: str) -> list[str]:
    """Return a flag's names with underscores and with hyphens.

    >>> spellings("--batch-size", "-b")
    ['--batch-size', '-b', '--batch_size']
    """
    found = dict.fromkeys(names)
    for name in names:
        if name.startswith("--"):
            found |= dict.fromkeys(["--" + name[2:].replace("-", "_"), "--" + name[2:].replace("_", "-")])
    return list(found)


class Parser(argparse.ArgumentParser):
    """Accepts every flag with hyphens or underscores, never abbreviated; help texts keep their line breaks.

    `add_argument` is typed more loosely than in argparse, to which it passes all options unchanged.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:  # type: ignore[override]
        return super().add_argument(*spellings(*names), **options)

    def group(self, title: str) -> Callable[..., argparse.Action]:
        """Return a function that adds flags under a heading of their own in --help."""
        group = self.add_argument_group(title)
        return lambda *names, **options: group.add_argument(*spellings(*names), **options)

    def error(self, message: str) -> NoReturn:
        """End the program with one line, and the flag that may have been meant, in place of the whole usage."""
        # Without the hyphens in front, which would make all flags alike.
        known = [next((name[2:] for name in a.option_strings if name.startswith("--")), "") for a in self._actions]
        unknown = message.split() if message.startswith("unrecognized arguments") else []
        typed = [word[2:].partition("=")[0] for word in unknown if word.startswith("--")]
        close = [f"--{name}" for word in typed for name in difflib.get_close_matches(word, known, n=1)]
        hint = f" Did you mean {' '.join(close)}?" if close else ""
        end = "" if message.endswith((".", "?", "!")) else "."
        self.exit(2, f"{self.prog}: error: {message}{end}{hint} See --help.\n")

    def at_least(self, args: argparse.Namespace, **bounds: float) -> None:
        """Exit with an error if numbers are below their bounds or NaN."""
        low = [name for name, bound in bounds.items() if not getattr(args, name) >= bound]
        self.refuse(f"--{name} {getattr(args, name)}: must be at least {bounds[name]}." for name in low)

    def between(self, args: argparse.Namespace, name: str, low: float, high: float) -> None:
        """Exit with an error if a number is outside its bounds."""
        if not low <= getattr(args, name) <= high:
            self.error(f"--{name} {getattr(args, name)}: must be between {low} and {high}.")

    def refuse(self, faults: Iterable[str]) -> None:
        """Exit with all faults in one line; go on if there are none."""
        if message := " ".join(faults):
            self.error(message)


def add_dataset_flags(add: Callable[..., argparse.Action]) -> None:
    """Add the flags used by `config.dataset_of`."""
    add("--dataset", default="CSL_Daily", choices=sorted(DATASETS), help="default: CSL_Daily")
    add("--dataset_config", default="", metavar="FILE", help="a data set of your own, as TOML; in place of --dataset")


def run(main: Callable[[], None]) -> None:
    """Run a program; an error that a user can fix prints one line (its traceback goes to the log), exit status 1."""
    try:
        main()
    except (ValueError, OSError) as error:
        logging.getLogger().debug("where it came from:", exc_info=True)
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM, which schedulers send, like Ctrl-C: raise KeyboardInterrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def installed(package: str) -> bool:
    """Return whether a package can be imported; a mere folder of that name, such as wandb's, does not count."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def require_packages(flag: str, *names: str) -> None:
    """Check that the packages for images and videos that a flag needs are installed.

    Raises:
        ValueError: a package is missing.
    """
    if missing := [name for name in names if not installed(name)]:
        raise ValueError(f"{flag} needs {' and '.join(missing)}: pip install -r requirements-rgb.txt")


def progress(items: Iterable[T], title: str, *, shown: bool = True, total: int | None = None) -> tqdm[T]:
    """Show a progress bar if stderr is a terminal. `total` is for items without a length."""
    from tqdm import tqdm

    hidden = not (shown and sys.stderr.isatty())
    return tqdm(items, desc=title, total=total, disable=hidden, leave=False, dynamic_ncols=True)


def in_processes(function: Callable[[S], T], jobs: Sequence[S], workers: int, chunk: int = 1) -> Iterator[T]:
    """Yield function(job) for each job, in order, computed by several processes.

    At most a few chunks are computed in advance, since all results at once may not fit into memory.
    """
    if workers == 1 or len(jobs) <= chunk:
        yield from map(function, jobs)
        return
    workers = min(workers, -(-len(jobs) // chunk))
    ahead: deque[Future[list[T]]] = deque()
    with ProcessPoolExecutor(workers) as pool:
        try:
            for first in range(0, len(jobs), chunk):
                ahead.append(pool.submit(_each, function, jobs[first : first + chunk]))
                if len(ahead) == AHEAD * workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            for result in ahead:
                result.cancel()


def _each(function: Callable[[S], T], jobs: Sequence[S]) -> list[T]:
    return [function(job) for job in jobs]
