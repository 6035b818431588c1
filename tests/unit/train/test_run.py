"""What `Run` promises besides exactness, against a node on the other side of the sockets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import holdfast
from holdfast.checkpoint.slots import Slot, State
from holdfast.errors import LeaseHeld, StoreRefused, UsageError
from holdfast.heartbeat import Handlers, Outcome, Page, Phase, page_path
from holdfast.plan import Every, Memory
from holdfast.train.objects import StateMismatch
from tests.fake_node import FakeNode
from tests.waiting import until


def loader(batches: int = 4) -> DataLoader[Any]:
    return DataLoader(torch.arange(batches, dtype=torch.float32), batch_size=1)  # type: ignore[arg-type]


def records(node: FakeNode) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (node.run.records / "rank-00000.jsonl").read_text().splitlines()]


def events(node: FakeNode, name: str) -> list[dict[str, Any]]:
    return [record for record in records(node) if record.get("event") == name]


def page(node: FakeNode) -> Page:
    return Page(page_path(node.run.runtime, 0))


def saved_steps(node: FakeNode) -> list[int]:
    return [kept.table["step"] for kept in node.kept]


def drop(run: holdfast.Run) -> None:
    run._session.abandon()


def test_a_finished_run_has_a_final_checkpoint_and_does_nothing_when_started_again(node: FakeNode) -> None:
    data = loader()
    with holdfast.Run(loader=data) as run:
        assert len(list(run.steps(data, epochs=2))) == 8
    kept = len(node.kept)

    with holdfast.Run(loader=data) as again:
        assert list(again.steps(data, epochs=2)) == []

    assert (again.resumed, again.step, again.epoch) == (True, 8, 2)
    assert len(node.kept) == kept
    assert node.kept[-1].table["step"] == 8
    beat = page(node).read()
    assert beat is not None
    assert (beat.outcome, beat.phase, beat.step, beat.steps_total) == (Outcome.FINISHED, Phase.CLOSED, 8, 0)


def test_tables_say_what_the_contract_asks(node: FakeNode) -> None:
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    optimizer = torch.optim.Adam([model.weight])
    data = loader(1)
    with holdfast.Run(model=model, optimizer=optimizer, loader=data) as run:
        for _ in run.steps(data, epochs=1):
            model(torch.ones(2)).sum().backward()
            optimizer.step()
            run.log(loss=torch.tensor(0.5), bad=float("nan"))

    table = node.kept[0].table

    tensors = {t["name"]: c["kind"] for c in table["chunks"] for t in c["tensors"]}
    assert tensors["model/weight"] == "trainable"
    assert tensors["model/bias"] == "frozen"
    assert tensors["optimizer/state/0/exp_avg"] == "optimizer"
    assert tensors["@gradients/model/weight"] == "other"
    wanted = {
        "version": 1,
        "save_id": "1-1",
        "rank": 0,
        "world": 1,
        "run": "digits",
        "term": 1,
        "sequence": 1,
        "step": 1,
    }
    assert wanted.items() <= table.items()
    assert table["metrics"] == {"loss": 0.5}
    assert [kept.table["save_id"] for kept in node.kept] == ["1-1", "1-1-2"]


def test_step_records_are_whole_and_come_before_their_checkpoint(node: FakeNode) -> None:
    data = loader(2)
    with holdfast.Run(loader=data) as run:
        for x in run.steps(data, epochs=1):
            node.archive_now()
            run.log(loss=x.sum(), name="a", inf=float("inf"), step=99)
        run.log(val_loss=0.25)

    lines = [(r.get("event", "record"), r["step"]) for r in records(node)]
    assert [line for line in lines if line[0] != "committed"] == [
        *[("restored", 0), ("record", 1), ("sealed", 1), ("record", 2), ("sealed", 2)],
        *[("sealed", 2), ("finished", 2)],  # the epoch's end
        *[("record", 2), ("sealed", 2)],  # val_loss
    ]
    first = records(node)[1]
    assert (first["loss"], first["name"], first["inf"], first["epoch"], first["attempt"]) == (
        0.0,
        "a",
        "Infinity",
        0,
        1,
    )
    assert node.kept[-1].table["metrics"] == {"loss": 1.0, "val_loss": 0.25}
    assert node.kept[-1].table["final"]


def test_log_takes_one_number(node: FakeNode) -> None:
    run = holdfast.Run()

    with pytest.raises(UsageError, match=r"loss=…\) takes one number or text, not a value of shape \(3,\)"):
        run.log(loss=torch.ones(3))

    drop(run)


def test_break_completes_the_step_at_the_next_call_and_an_exception_does_not(node: FakeNode) -> None:
    data = loader()
    run = holdfast.Run(loader=data)
    for _ in run.steps(data, epochs=1):
        break
    run.log(note=1)
    assert run.step == 1
    with pytest.raises(ZeroDivisionError), run:
        for _ in run.steps(data, epochs=1):
            raise ZeroDivisionError

    assert run.step == 1
    beat = page(node).read()
    assert beat is not None
    assert beat.outcome is Outcome.RAISED


def test_after_break_the_rest_of_the_epochs_is_continued(node: FakeNode) -> None:
    data = loader()
    with holdfast.Run(loader=data) as run:
        for _ in run.steps(data, epochs=2):
            if run.step == 2:
                break

    with holdfast.Run(loader=data) as again:
        rest = [x.item() for x in again.steps(data, epochs=2)]

    assert rest == [3, 0, 1, 2, 3]


def test_agreed_stop_saves_and_leaves_with_75(node: FakeNode) -> None:
    data = loader()
    run = holdfast.Run(loader=data)
    page(node).set(stop_at_step=3)
    with pytest.raises(SystemExit) as caught:
        for _ in run.steps(data, epochs=5):
            assert run.should_stop

    assert caught.value.code == 75
    assert run.step == saved_steps(node)[-1] == 3
    beat = page(node).read()
    assert beat is not None
    assert (beat.outcome, beat.phase) == (Outcome.STOPPED, Phase.CLOSED)
    assert events(node, "stopped")
    page(node).set(stop_at_step=0)


def test_sigterm_stops_at_the_next_boundary(node: FakeNode) -> None:
    data = loader()
    before = signal.getsignal(signal.SIGTERM)
    run = holdfast.Run(loader=data)
    assert Handlers.TERMINATE in page(node).read().handlers  # type: ignore[union-attr]
    with pytest.raises(SystemExit):
        for _ in run.steps(data, epochs=5):
            if run.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    assert run.step == 2
    assert page(node).get("stop_wanted") == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_request_in_the_page_is_answered_once(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = json.loads(node.run.plan.read_text())
    plan["checkpoint"]["every"]["steps"] = None
    node.run.plan.write_text(json.dumps(plan))
    data = loader()
    run = holdfast.Run(loader=data)
    page(node).set(save_at_step=2, save_number=1)
    for _ in run.steps(data, epochs=1):
        node.archive_now()

    assert saved_steps(node) == [2, 4]
    assert page(node).get("save_handled") == 1
    drop(run)
    assert page(node).get("save_handled") == 1


def test_run_save_waits_for_the_end_of_the_step(node: FakeNode) -> None:
    data = loader(2)
    run = holdfast.Run(loader=data)
    for _ in run.steps(data, epochs=1):
        run.save("by hand")
        assert node.kept == [] or run.step > 0
    until(lambda: len(node.kept) >= 1)

    assert node.kept[0].table["reason"] == "by hand"
    assert node.kept[0].table["step"] == 1
    run.save("outside")
    until(lambda: node.kept[-1].table["reason"] == "outside")
    drop(run)


def test_busy_slots_skip_a_save_and_tell_once(node: FakeNode) -> None:
    node.hold = True
    data = loader(8)
    run = holdfast.Run(loader=data)
    for _ in run.steps(data):
        pass

    assert len(events(node, "sealed")) == 3
    assert len(events(node, "save_skipped")) == 1
    node.hold = False
    run.close()
    assert node.kept[-1].table["step"] == 8


def test_a_refused_save_is_told_and_training_goes_on_but_a_refused_final_raises(
    node: FakeNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.refuse = "no space left on device"
    data = loader(3)
    run = holdfast.Run(loader=data)
    failed = []
    run.on("save_failed", failed.append)
    for _ in run.steps(data):
        node.archive_now()
    with pytest.raises(StoreRefused, match="no space left"):
        run.close()
    drop(run)

    assert failed[0].error == "no space left on device"
    assert events(node, "save_failed")[0]["message"] == "no space left on device"
    assert "no space left" in capsys.readouterr().err


def test_a_callback_that_raises_costs_nothing(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    data = loader(2)
    told = []
    with holdfast.Run(loader=data) as run:
        run.on("before_save", lambda occasion: 1 / 0)
        run.on("committed", told.append)
        for _ in run.steps(data, epochs=1):
            node.archive_now()

    assert saved_steps(node) == [1, 2, 2]
    assert [occasion.step for occasion in told] == [1, 2, 2]
    assert "ZeroDivisionError" in events(node, "callback_failed")[0]["message"]
    assert "ZeroDivisionError" in capsys.readouterr().err
    with holdfast.Run(loader=data) as again:
        again.on("restored", told.append)
    assert told[-1].step == 2


def test_a_second_live_run_is_refused(node: FakeNode) -> None:
    run = holdfast.Run()
    with pytest.raises(LeaseHeld, match=f"in use by process {os.getpid()}"):
        holdfast.Run()

    run.close()
    holdfast.Run().close()


def test_the_shim_gets_the_slots_back_after_a_restart(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.train.link._CHECK_S", 0.0)
    data = loader()
    with holdfast.Run(loader=data) as run:
        for _ in run.steps(data, epochs=1):
            if run.step == 1:
                node.restart_shim()

    assert node.offered == 1
    assert node.kept[-1].table["step"] == 4


def test_a_torn_slot_of_a_dead_predecessor_is_taken_over(node: FakeNode) -> None:
    data = loader()
    run = holdfast.Run(loader=data)
    for _ in run.steps(data):
        break
    drop(run)
    descriptor = node.sets[0].slots[0]
    torn = Slot(descriptor)
    torn.set(state=State.WRITING)
    torn.close()

    holdfast.Run(loader=data).close()

    assert Slot(descriptor).state is State.FREE


def test_json_values_become_defaults_of_state(node: FakeNode) -> None:
    with holdfast.Run(best=1.5, names=["a"], scaler=None) as run:
        assert run.state == {"best": 1.5, "names": ["a"]}
        run.state["best"] = 0.5

    with holdfast.Run(best=1.5, other=3) as again:
        assert again.state == {"best": 0.5, "names": ["a"], "other": 3}


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"model": object()}, "Run.model=….* has no state_dict"),
        ({"loader": DataLoader(type("Endless", (IterableDataset,), {"__iter__": iter})())}, "reads an IterableDataset"),
    ],
)
def test_what_cannot_be_registered_is_told_in_one_sentence(node: FakeNode, state: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        holdfast.Run(**state)


def test_a_loader_that_is_neither_is_refused(node: FakeNode) -> None:
    run = holdfast.Run()
    with pytest.raises(UsageError, match="neither a DataLoader nor an iterable with state_dict"):
        run.steps([1, 2, 3])
    drop(run)


def train_once(**state: Any) -> None:
    data = loader(1)
    with holdfast.Run(**state, loader=data) as run:
        list(run.steps(data, epochs=1))


def test_what_is_stored_and_consumed_by_nothing_is_an_error(node: FakeNode) -> None:
    train_once(model=torch.nn.Linear(2, 2), ema=torch.nn.Linear(2, 2))
    with pytest.raises(StateMismatch, match="the checkpoint holds 'ema', which Run was not given"):
        holdfast.Run(model=torch.nn.Linear(2, 2), loader=loader(1))
    with pytest.raises(StateMismatch, match="Run was given 'head', which the checkpoint does not hold"):
        holdfast.Run(model=torch.nn.Linear(2, 2), ema=torch.nn.Linear(2, 2), head=torch.nn.Linear(1, 1))

    allowed = holdfast.Run(
        model=torch.nn.Linear(2, 2),
        head=torch.nn.Linear(1, 1),
        allow_unused=["ema"],
        allow_missing=["head"],
        loader=loader(1),
    )

    assert allowed.resumed
    drop(allowed)


def test_a_module_that_changed_is_told_with_shapes(node: FakeNode) -> None:
    train_once(model=torch.nn.Linear(2, 2))

    with pytest.raises(
        StateMismatch, match=r"of another shape:\n    weight float32 \(2, 2\) instead of float32 \(3, 2\)"
    ):
        holdfast.Run(model=torch.nn.Linear(2, 3), loader=loader(1))
    with pytest.raises(
        StateMismatch,
        match=r"not in the checkpoint:\n    0.weight float32 \(2, 2\)\n    0.bias float32 \(2,\)\n  only in the",
    ):
        holdfast.Run(model=torch.nn.Sequential(torch.nn.Linear(2, 2)), loader=loader(1))


def test_random_states_are_left_alone_until_the_loop_is_entered(node: FakeNode) -> None:
    data = loader(2)
    torch.manual_seed(1)
    run = holdfast.Run(loader=data)
    for _ in run.steps(data):
        node.archive_now()
    expected = torch.rand(())
    drop(run)

    torch.manual_seed(2)
    again = holdfast.Run(loader=data)
    here = torch.rand(())
    list(again.steps(data))

    torch.manual_seed(2)
    assert here == torch.rand(())
    torch.manual_seed(3)
    drop(again)
    third = holdfast.Run(loader=data)
    list(third.steps(data))
    assert torch.rand(()) == expected
    drop(third)


@pytest.mark.parametrize("loop", ["steps", "epochs", "bare"])
def test_code_behind_the_training_draws_the_same_after_a_kill_there(node: FakeNode, loop: str) -> None:
    def train(run: holdfast.Run, data: DataLoader[Any]) -> None:
        if loop == "steps":
            list(run.steps(data, epochs=2))
        elif loop == "epochs":
            for _ in run.epochs(2):
                list(run.steps(data))
        else:
            for _ in range(run.epoch, 2):
                list(run.steps(data))
            run.close()

    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        data = loader(2)
        run = holdfast.Run(loader=data)
        train(run, data)
        drawn.append(torch.rand(()))
        drop(run)

    assert drawn[0] == drawn[1]


def test_a_hand_written_loop_without_wrap_begins_by_hand(node: FakeNode, capsys: pytest.CaptureFixture[str]) -> None:
    run = holdfast.Run()
    run.begin()
    torch.rand(3)
    run.tick()
    expected = torch.rand(())
    until(lambda: node.kept)
    drop(run)

    again = holdfast.Run()
    again.begin()
    assert torch.rand(()) == expected
    drop(again)
    forgetful = holdfast.Run()
    forgetful.tick()
    assert "random states were not restored" in capsys.readouterr().err
    drop(forgetful)


def test_each_step_of_a_hand_written_loop_is_recorded_under_its_own_number(node: FakeNode) -> None:
    for _ in range(2):
        run = holdfast.Run()
        run.begin()
        for _ in range(2):
            run.log(loss=run.step + 1)
            run.tick()
            until(lambda done=run.step: saved_steps(node)[-1:] == [done])
        drop(run)

    assert [(r["step"], r["loss"]) for r in records(node) if "loss" in r] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_run_inside_a_worker_is_refused(node: FakeNode) -> None:
    class Nosy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> str:
            try:
                holdfast.Run()
            except UsageError as error:
                return str(error)
            return "made"

    run = holdfast.Run()
    (said,) = next(iter(DataLoader(Nosy(), num_workers=1)))
    drop(run)

    assert said.endswith(f"a worker of process {os.getpid()}")


def test_workers_see_the_users_dataset_and_their_own_init(node: FakeNode) -> None:
    class Told(torch.utils.data.Dataset[Any]):
        gain = 1.0

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> float:
            return index * self.gain

    def init(worker_id: int) -> None:
        torch.utils.data.get_worker_info().dataset.gain = 10.0  # type: ignore[union-attr]

    data = DataLoader(Told(), num_workers=1, worker_init_fn=init)
    run = holdfast.Run(loader=data)
    seen = [x.item() for x in run.steps(data)]
    drop(run)

    assert seen == [0.0, 10.0]


SCRIPT = """
import os, sys, signal
import torch, holdfast
from torch.utils.data import DataLoader
data = DataLoader(torch.arange(6.), batch_size=1)
run = holdfast.Run(loader=data)
for x in run.steps(data, epochs=1):
    {body}
{end}
"""


def child(node: FakeNode, body: str, end: str = "") -> subprocess.CompletedProcess[str]:
    code = SCRIPT.format(body=body, end=textwrap.dedent(end))
    environ = {**os.environ, **node.environ(), "PYTHONWARNINGS": "ignore"}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)


def test_how_a_script_ends_is_told(node: FakeNode, tmp_path: Path) -> None:
    killed = child(node, "if run.step == 2: os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.returncode == -signal.SIGKILL
    assert page(node).get("outcome") == Outcome.NONE

    raised = child(node, "if run.step == 3: raise ValueError('mine')")
    assert "ValueError: mine" in raised.stderr
    assert page(node).get("outcome") == Outcome.RAISED
    assert saved_steps(node)[-1] <= 3

    left = child(node, "if run.step == 4: sys.exit(3)")
    assert left.returncode == 3
    assert "ended inside a step" in left.stderr

    finished = child(node, "pass", "print(run.step)")
    assert finished.stdout == "6\n"
    assert page(node).get("outcome") == Outcome.FINISHED


def test_usr2_writes_stacks_and_training_goes_on(node: FakeNode) -> None:
    done = child(node, "if run.step == 1: os.kill(os.getpid(), signal.SIGUSR2)", "print(run.step)")

    assert "most recent call first" in done.stderr
    assert done.stdout == "6\n"


def test_ranks_have_their_own_pages_records_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(tmp_path / "wide", world=2, every=Every(auto=True, seconds=0.0, steps=2))
    for name, value in node.environ(RANK="1").items():
        monkeypatch.setenv(name, value)
    data = loader(3)
    run = holdfast.Run(loader=data)
    list(run.steps(data))
    until(lambda: node.kept)
    drop(run)

    table = node.kept[0].table
    assert (table["rank"], table["world"], table["save_id"]) == (1, 2, "1-2")
    assert len(node.kept) == 1  # clocks decide nothing
    assert (node.run.records / "rank-00001.jsonl").exists()
    assert Page(page_path(node.run.runtime, 1)).get("step") == 3
    node.close()


def test_no_two_states_of_one_step_have_one_save_id(node: FakeNode) -> None:
    run = holdfast.Run(model=torch.nn.Linear(2, 1))
    for number in range(2):
        run.state["number"] = number
        run.save(f"by hand {number}")
    run.state["number"] = 2
    run.close()

    assert [kept.table["save_id"] for kept in node.kept] == ["1-0-1", "1-0-2", "1-0-3"]


def test_every_one_of_several_ranks_saves_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = FakeNode(tmp_path / "wide", world=2)
    for name, value in node.environ(RANK="1").items():
        monkeypatch.setenv(name, value)
    data = loader(2)
    run = holdfast.Run(loader=data)
    list(run.steps(data))
    run.close()

    # Nothing is new here since the last step, but rank 0 may have logged something, and needs this part for its save.
    assert [kept.table["save_id"] for kept in node.kept if kept.table["final"]] != []
    node.close()


@pytest.mark.parametrize("memory", [Memory(auto=False), Memory(auto=False, steps=1)])
def test_what_code_behind_the_loop_changes_is_in_the_final_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: Memory
) -> None:
    node = FakeNode(tmp_path / "digits", memory=memory)
    for name, value in node.environ().items():
        monkeypatch.setenv(name, value)
    model, data = torch.nn.Linear(2, 1), loader(2)
    run = holdfast.Run(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5), loader=data)
    list(run.steps(data, epochs=1))
    finished = len(node.kept)
    run._session.finish()
    assert len(node.kept) == finished, "nothing was changed"

    model.weight.data.fill_(7.0)  # as averaging weights or updating BatchNorm does
    run.close()

    assert (len(node.kept), node.kept[-1].table["final"]) == (finished + 1, True)
    again = torch.nn.Linear(2, 1)
    drop(holdfast.Run(model=again, optimizer=torch.optim.SGD(again.parameters(), lr=0.5), loader=loader(2)))
    assert again.weight.tolist() == [[7.0, 7.0]]
    node.close()
