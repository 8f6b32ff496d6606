"""Generated inputs for everything that reads files; see helpers/fuzz.py for what must hold."""

import json
import pickle
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers import fuzz

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text() | st.just("frames"), children),
    max_leaves=20,
)
ENTRY = st.fixed_dictionaries(
    {}, optional={"filename": JSON | st.from_regex(r"\d{1,6}\.jpg"), "frame_id": JSON, "description": JSON}
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda children: st.lists(children) | st.dictionaries(st.text() | st.integers(), children) | st.tuples(children),
    max_leaves=20,
)
CLIP = st.fixed_dictionaries({}, optional={"video_path": st.text() | VALUES, "text": VALUES, "gloss": VALUES})
POSE = st.fixed_dictionaries({"keypoints": VALUES, "scores": VALUES}, optional={"start": VALUES, "end": VALUES})
STRUCTURED = {
    "descriptions": (JSON | st.lists(ENTRY)).map(lambda value: json.dumps(value).encode()),
    "labels": (VALUES | st.dictionaries(st.text(), CLIP)).map(pickle.dumps),
    "poses": (VALUES | POSE).map(pickle.dumps),
    "states": JSON.map(lambda value: json.dumps(value).encode()),
    "alignment": st.lists(st.integers(0, 300)).map(lambda numbers: b"".join(n.to_bytes(8, "little") for n in numbers)),
}


@st.composite
def damaged(draw, seeds):
    """A good file with some bytes replaced, dropped, repeated or cut off."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        change = draw(st.sampled_from(["replace", "drop", "repeat", "cut", "insert"]))
        if change == "replace" and data:
            data[place] = draw(st.integers(0, 255))
        elif change == "drop":
            del data[place : place + draw(st.integers(1, 8))]
        elif change == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        elif change == "cut":
            del data[place:]
        else:
            data[place:place] = draw(st.binary(max_size=8))
    return bytes(data)


def inputs(target):
    """Any bytes, damaged good files, and wrong content in the right format."""
    return st.one_of(st.binary(max_size=200), damaged(fuzz.seeds(target)), STRUCTURED.get(target, st.nothing()))


def most_memory():
    """The most this process has held so far, in KB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def try_inputs(target, n):
    @settings(
        max_examples=n, deadline=None, database=None, derandomize=n < 1000, suppress_health_check=list(HealthCheck)
    )
    @given(inputs(target))
    def check(data):
        # Input by input: hypothesis itself keeps tens of KB of each, hundreds of MB in a long run.
        before = most_memory()
        fuzz.TARGETS[target](data)
        assert most_memory() - before < 100_000  # KB

    fuzz.TARGETS[target](b"")  # what is imported at first use is not the input's
    check()


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_a_hundred_inputs(target):
    try_inputs(target, 100)


@pytest.mark.slow
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_twenty_thousand_inputs(target):
    try_inputs(target, 20_000)
