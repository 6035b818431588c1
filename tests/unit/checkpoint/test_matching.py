"""Names across wrappers, and what is said when two sides do not fit."""

from __future__ import annotations

from holdfast.checkpoint.matching import Described, Lenient, align, match

W = Described("float32", (2, 2))


def test_equal_names_are_left_alone_even_with_the_words_of_wrappers() -> None:
    assert align(["module.a", "n"], ["module.a", "n"]) == {"module.a": "module.a", "n": "n"}


def test_words_of_wrappers_are_stripped_and_added_wherever_they_stand() -> None:
    stored = ["module.0.weight", "head._orig_mod.bias", "plain"]
    here = ["_orig_mod.0.weight", "head.bias", "module._orig_mod.plain"]

    assert align(stored, here) == dict(zip(stored, here, strict=True))


def test_a_bare_name_that_two_share_decides_nothing() -> None:
    assert align(["module.a", "_orig_mod.a"], ["a"]) == {}
    assert align(["a"], ["module.a", "_orig_mod.a"]) == {}


def test_a_name_that_matches_exactly_is_not_taken_by_another() -> None:
    assert align(["a", "module.a"], ["a"]) == {"a": "a"}


def test_everything_that_differs_is_told_at_once() -> None:
    half = Described("float16", (2, 2))
    stored = {"gone": W, "wide": Described("float32", (3, 2)), "half": half, "same": W}
    here = {"new": Described("int64", ()), "wide": W, "half": W, "same": W}

    names, differs = match(stored, here)

    assert names == {"half": "half", "same": "same"}
    assert str(differs).splitlines() == [
        "1 not in the checkpoint, 1 only in the checkpoint, 1 of another shape, 1 of another dtype",
        "  not in the checkpoint:",
        "    new int64 ()",
        "  only in the checkpoint:",
        "    gone float32 (2, 2)",
        "  of another shape:",
        "    wide float32 (3, 2) instead of float32 (2, 2)",
        "  of another dtype:",
        "    half float16 (2, 2) instead of float32 (2, 2)",
    ]


def test_what_is_allowed_is_not_told_and_another_shape_needs_both() -> None:
    stored = {"old": W, "head": Described("float32", (3, 2)), "half": Described("float16", (2, 2))}
    here = {"new": W, "head": W, "half": W}
    lenient = Lenient(missing=["m/new", "m/head"], unused=["m/old", "m/head"], dtype=["m/half"])

    assert match(stored, here, lenient, prefix="m/") == ({"half": "half"}, match({}, {})[1])
    assert match(stored, here, lenient._replace(unused=["m/old"]), prefix="m/")[1].shape


def test_long_lists_are_cut() -> None:
    _, differs = match({str(n): W for n in range(13)}, {})

    said = str(differs).splitlines()
    assert (said[0], said[-1]) == ("13 only in the checkpoint", "    and 3 more")
    assert len(said) == 1 + 1 + 10 + 1
