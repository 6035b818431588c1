"""Text in, spec out; or everything that is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast import exits
from holdfast.errors import RunFileError
from holdfast.spec import RunFileMistakes, Source, Spec, dump, load
from holdfast.spec.survival import ExitClass
from holdfast.units import Trigger


def loaded(*texts: str, environ: dict[str, str] | None = None, **options: Any) -> Spec:
    sources = [Source(f"{number}.yaml", text) for number, text in enumerate(texts)]
    return load(sources, environ=environ or {}, **options)


def test_what_searches_for_mistakes_may_be_switched_on_by_the_run_file() -> None:
    assert loaded("run: x\nenvs: {HOLDFAST_CHECK_SNAPSHOT: 1}").envs == {"HOLDFAST_CHECK_SNAPSHOT": "1"}
    assert "is set by holdfast itself" in refused("run: x\nenvs: {HOLDFAST_RUN_DIR: 1}")


def refused(*texts: str, **options: Any) -> str:
    with pytest.raises(RunFileMistakes) as caught:
        loaded(*texts, **options)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_a_command_is_enough() -> None:
    spec = loaded("run: python train.py")

    assert spec.run == "python train.py"
    assert spec.restart.max_restarts == 20
    assert spec.checkpoint.keep.last == 3


def test_a_list_is_a_command_without_a_shell() -> None:
    assert loaded("run: [python, train.py, --lr, 1e-3, --flag, on, -n, 010]").run == (
        "python", "train.py", "--lr", "1e-3", "--flag", "on", "-n", "010",
    )  # fmt: skip


@pytest.mark.parametrize(
    "word", ["on", "off", "yes", "no", "y", "n", "1:30", "72:00:00", "3.10", "010", "1_000", "true", "2026-01-01"]
)
def test_values_that_other_readers_of_yaml_turn_into_something_else_stay_text(word: str) -> None:
    assert loaded(f"run: x\nenvs: {{A: {word}}}").envs == {"A": word}


@pytest.mark.parametrize(("line", "said"), [
    ("checkpoint: {mirror: {url: s3://b, logs: yes}}", "expected true or false, found the text 'yes'\n"),
    ("max_duration: 1:30", "'1:30' is not a duration"),
    ("restart: {max_restarts: 1_000}", "expected a whole number, found the text '1_000'"),
])  # fmt: skip
def test_yaml_1_1_is_not_guessed(line: str, said: str) -> None:
    assert said in refused(f"run: x\n{line}")


def test_policy_no_is_a_word() -> None:
    assert loaded("run: x\nrestart: {policy: no}").restart.policy == "no"


def test_every_without_a_unit_is_told_so() -> None:
    with pytest.raises(RunFileError, match="20 has no unit"):
        loaded("run: x\ncheckpoint: {every: 20}")


@pytest.mark.parametrize("line", [
    "checkpoint: {max_overhead: 0%}", "watchdog: {startup: 0s}", "max_duration: 0s", "watch: {interval: 0ms}",
])  # fmt: skip
def test_what_must_be_more_than_zero_is_told_so(line: str) -> None:
    assert "must be more than zero" in refused(f"run: a\n{line}")


def test_rules_as_redis_has_them_are_taken() -> None:
    found = loaded("run: x\ncheckpoint: {every: [900s if 1 step, 60s if 1000 steps]}").checkpoint.every
    assert found == (Trigger(seconds=900.0, if_steps=1), Trigger(seconds=60.0, if_steps=1000))


def test_every_takes_one_a_list_or_auto() -> None:
    assert loaded("run: x\ncheckpoint: {every: 15m}").checkpoint.every == (Trigger(seconds=900.0),)
    assert loaded("run: x\ncheckpoint: {every: auto}").checkpoint.every == ()
    found = loaded("run: x\ncheckpoint: {every: [15m, 1000 steps, 1 epoch]}").checkpoint.every
    assert found == (Trigger(seconds=900.0), Trigger(steps=1000), Trigger(epochs=1))


def test_later_files_go_over_earlier_ones_key_by_key() -> None:
    spec = loaded("run: a\nrestart: {max_restarts: 1, max_no_progress: 2}", "run: b\nrestart: {max_restarts: 9}")

    assert (spec.run, spec.restart.max_restarts, spec.restart.max_no_progress) == ("b", 9, 2)


def test_a_mistake_points_into_the_file_it_came_from() -> None:
    assert "1.yaml:1:26: restart.max_restarts" in refused("run: a", "{restart: {max_restarts: x}}")


def test_set_goes_over_files_and_reads_yaml() -> None:
    spec = loaded("run: a", overrides=["restart.max_restarts=5", "checkpoint.every=[15m, 1 epoch]", "name=x"])

    assert (spec.restart.max_restarts, len(spec.checkpoint.every), spec.name) == (5, 2, "x")


@pytest.mark.parametrize(("option", "said"), [
    ("restart.max_restarts", "is not KEY=VALUE"),
    (".=3", "is not KEY=VALUE"),
    ("restart.max_restart=3", "did you mean 'max_restarts'?"),
    ("restart.max_restarts=x", "    1 | restart.max_restarts=x\n      |                      ^"),
    ("restart.max_restarts=[", "what begins here does not end"),
    ("run.x=3", "run: expected a shell command"),
])  # fmt: skip
def test_a_wrong_set_is_shown_as_given(option: str, said: str) -> None:
    message = refused("run: a", overrides=[option])
    assert message.splitlines()[2].startswith("--set: ")
    assert said in message


def test_environment_variables_come_from_options_and_from_the_caller() -> None:
    spec = loaded("run: a\nenvs: {A: null, B: null, C: 1}", env=["A=x=y", "D"], environ={"B": "b", "D": "d", "A": "no"})

    assert spec.envs == {"A": "x=y", "B": "b", "C": "1", "D": "d"}


def test_all_missing_variables_are_named() -> None:
    message = refused("run: a\nenvs: {A: null, B: null}", env=["C", "1x=3"])
    assert all(
        said in message for said in ("envs.A is null", "envs.B is null", "C is not in the env", "'1x' cannot be")
    )


def test_a_command_and_a_name_go_over_the_file() -> None:
    spec = loaded("run: a\nname: b", argv=["python", "t.py"], name="c")
    assert (spec.run, spec.name) == (("python", "t.py"), "c")


def test_a_name_that_looks_like_a_number_is_a_name_on_the_command_line() -> None:
    assert loaded("run: a", name="3.10").name == "3.10"


def test_secrets_leave_only_their_names_and_recipes() -> None:
    spec = loaded(
        "run: a\nsecrets: {A: null, B: {command: pass b}, C: {file: ~/.c}}",
        secrets=["A=hunter2", "D"],
        environ={"D": "hunter3"},
    )

    assert set(spec.secrets) == {"A", "B", "C", "D"}
    assert "hunter" not in f"{spec!r}{dump(spec)}{spec.model_dump_json()}"


@pytest.mark.parametrize("text", [
    "secrets: {A: hunter2}",
    "secrets: {A: [hunter2]}",
    "secrets: hunter2",
    "secrets: [hunter2, {x: hunter2}]",
    "secrets: {A: {value: hunter2}}",
    "secrets:\n  A: |\n    hunter2\n    hunter2\n  evry: 3\nrestrt: 1",
    "secrets: {A: 'hunter2', 'B C': null}",
    "secrets: {A: hunter2",
    "secrets:\n  A: hunter2\n\tB: 3",
    "secrets:\n  A: hunter2\n  B: &x hunter2\nenvs: {",
    "secrets:\n  A: \"hunter2\n  B: 3",
])  # fmt: skip
def test_no_message_ever_shows_a_secret(text: str) -> None:
    assert "hunter2" not in refused(f"run: a\n{text}")


def test_no_message_shows_a_secret_given_by_an_option() -> None:
    assert "hunter2" not in refused("run: a", overrides=["secrets.A=hunter2"], secrets=["1A=hunter2", "B=hunter2"])


def test_a_name_under_envs_and_secrets_is_refused() -> None:
    assert "'A' is under both envs and secrets" in refused(
        "run: a\nenvs: {A: 1}\nsecrets: {A: null}", environ={"A": "x"}
    )


def test_a_file_with_every_table_has_only_what_is_not_built_wrong_with_it() -> None:
    text = (Path(__file__).parents[2] / "golden" / "everything.yaml").read_text()
    said = refused(text, environ={"DATA": "x", "WANDB_API_KEY": "x"})
    places = [line for line in said.splitlines() if line.startswith("0.yaml:")]
    assert len(places) == 8
    assert all(line.endswith("is not supported yet") for line in places)


def test_classes_of_rules_are_those_of_the_lifecycle() -> None:
    asked_for = {"succeeded", "stopped", "user_stop", "segment_end", "segment_cut"}
    assert set(get_args(ExitClass)) == {each.value for each in exits.ExitClass} - asked_for


def test_defaults_of_what_is_not_built_may_be_written_out() -> None:
    spec = loaded(
        "run: a\nnum_nodes: 1\nresources: {infra: local}\nports: []\n"
        "link: {keepalive: auto, persist: 1800s, compression: auto, max_age: null}\n"
        "checkpoint: {memory: auto, mirror: null}"
    )
    assert spec.num_nodes == 1


@pytest.mark.parametrize("line", [
    "num_nodes: 2", "resources: {infra: slurm/gpu}", "environment: {uv: .}", "environment: {image: 'docker://x'}",
    "watch: {interval: 2s}", "tracking: {mlflow: 'http://x'}",
    "publish: mlflow:d", "notify: [{url: $X}]", "react: [{when: a, do: b}]",
    "alerts: [{name: a, when: b}]", "file_mounts: {/a: /b}",
])  # fmt: skip
def test_what_is_not_built_is_refused_and_never_ignored(line: str) -> None:
    assert "not supported yet" in refused(f"run: a\n{line}")


def test_only_what_has_multiples_is_kept_by_them() -> None:
    assert loaded("run: a\ncheckpoint: {keep: {every: 1 epoch}}").checkpoint.keep.every is not None
    assert "1m if 1000 steps cannot stand here" in refused("run: a\ncheckpoint: {keep: {every: 60s if 1000 steps}}")


def test_references_to_unknown_names_are_found() -> None:
    loaded("run: a ${anything}\nenvs: {D: x}\ncheckpoint: {dir: '/d/${run}/${name}/${D}', mirror: 's3://b/${run}'}")
    for field in (
        "dir: '/d/${user}'",
        "memory_dir: '/d/${user}'",
        "mirror: 's3://${user}'",
        "mirror: {url: 's3://${user}'}",
    ):
        assert "${user} has no value" in refused(f"run: a\ncheckpoint: {{{field}}}")


def test_a_big_text_and_a_deep_one_are_refused() -> None:
    assert "bigger than 1.0 MiB" in refused("run: a\n#" + "x" * (1 << 20))
    assert "nested more than" in refused("[" * 5000)
    assert "more than 20000 values" in refused("[" + "1," * 30_000 + "]")


def test_mistakes_past_a_bound_are_counted() -> None:
    assert "… and 70 more" in refused("run: a\n" + "".join(f"k{number}x: 1\n" for number in range(100)))


def test_wide_and_control_characters_do_not_move_the_caret() -> None:
    message = refused('run: a\nenvs: {训练: "x"}')
    line, carets = message.splitlines()[3:5]
    assert carets.index("^") == line.index("训")
    assert carets.count("^") == 4


def test_dump_writes_what_was_given_and_nothing_else() -> None:
    text = (
        "run: |\n  set -e\n  python x.py\ncheckpoint:\n  every:\n  - 15m\n  - 1000 steps\n"
        "envs:\n  A: '3.10'\nstop_grace_period: 1m30s\n"
    )
    assert sorted(dump(loaded(text)).splitlines()) == sorted(text.splitlines())


names = st.from_regex(r"[A-Z]{1,8}", fullmatch=True)
commands = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Cn", "Co")), min_size=1).filter(
    str.strip
)


@settings(deadline=None)
@given(
    run=commands | st.lists(commands, min_size=1).map(tuple),
    envs=st.dictionaries(names, commands),
    grace=st.integers(0, 10**6),
)
def test_what_is_dumped_loads_as_the_same(run: Any, envs: dict[str, str], grace: int) -> None:
    spec = Spec.model_validate({"run": run, "envs": envs, "stop_grace_period": f"{grace}s"})
    assert loaded(dump(spec)) == spec


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet="runevs: \n\t[]{}-'\"#&*!|>%@`~,?0123abc${}"))
def test_any_text_is_a_run_file_or_a_mistake(text: str) -> None:
    try:
        loaded(text)
    except RunFileError as error:
        assert str(error)


keys = st.sampled_from(
    ["run", "name", "envs", "secrets", "checkpoint", "every", "keep", "last", "restart", "rules", "link", "x"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@settings(max_examples=200, deadline=None)
@given(tree=st.dictionaries(keys, trees))
def test_any_tree_is_a_run_file_or_a_mistake(tree: Any) -> None:
    try:
        loaded(json.dumps(tree))
    except RunFileError as error:
        assert str(error)
