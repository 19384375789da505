import csv
import errno
import json
import math
import os
import signal
import sys
from pathlib import Path

import filelock
import pytest
import torch
from disk import FullDisk
from geoopt import ManifoldParameter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim import lr_scheduler

from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, Uniform
from givens.rnn import (
    CheckpointError,
    DivergenceError,
    InterruptedTraining,
    OrthogonalRNN,
    SequenceModel,
    Trainer,
    evaluate,
)
from givens.rnn.checkpoint import load_checkpoint
from givens.rnn.logs import JSONLinesLog, MetricsError, read_metrics
from givens.rnn.tasks import AddingProblem, CopyingMemory, PixelDigits

OPTIMIZERS = {
    "srcd-uniform": lambda p, q: [SRCD(p, 0.1, Uniform(), seed=3), torch.optim.SGD(q, 0.1)],
    "srcd-cyclic": lambda p, q: [SRCD([*p, *q], 0.1, Cyclic())],
    "srcd-gs": lambda p, q: [SRCD(p, 0.1, GaussSouthwell()), torch.optim.RMSprop(q, 1e-2)],
    "srcd-block": lambda p, q: [SRCD(p, 0.1, Block(fraction=0.3)), torch.optim.Adam(q, 1e-2)],
    "srcd-disjoint": lambda p, q: [SRCD(p, 0.1, Block(size=2, rule=Uniform(), disjoint=True))],
    "srgd": lambda p, q: [SRGD([*p, *q], 0.1, momentum=0.9)],
    "adam": lambda p, q: [torch.optim.Adam([*p, *q], 1e-3, amsgrad=True)],
    "sgd": lambda p, q: [torch.optim.SGD([*p, *q], 1e-3, momentum=0.9)],
}
SCHEDULERS = {
    "multistep": lambda o: lr_scheduler.MultiStepLR(o, [3, 3, 8]),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "plateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.5)], [4]
    ),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
}


class Hooked:
    """A task that does something before it gives out a batch."""

    def __init__(self, task, **hooks):
        self.task = task
        self.hooks = {int(name.removeprefix("at_")): hook for name, hook in hooks.items()}

    def __getattr__(self, name):
        return getattr(self.task, name)

    def __getitem__(self, n):
        self.hooks.pop(n, lambda: None)()
        return self.task[n]


def copying():
    return CopyingMemory(length=3, letters=2, batch_size=4)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def terminate():
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers():
    """Python's own, whatever the shell that started the tests ignores (SIGINT in the background)."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def make(run_dir, optimizer="srcd-gs", scheduler=None, task=None, **options):
    torch.manual_seed(0)
    task = task or copying()
    rnn = OrthogonalRNN(task.input_size, 6, num_layers=2, dropout=0.2)
    model = SequenceModel(rnn, task.output_size, task.readout)
    points = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    optimizers = OPTIMIZERS[optimizer](points, others)
    schedulers = [SCHEDULERS[scheduler](optimizers[-1])] if scheduler else []
    options = {"progress": False, "log_every": 2, "checkpoint_every": 5} | options
    return Trainer(model, optimizers, task, run_dir, schedulers=schedulers, **options)


def records(run_dir):
    lines = read_metrics(Path(run_dir) / "metrics.jsonl")
    return [{name: value for name, value in r.items() if name != "seconds"} for r in lines]


def state(run_dir):
    """Everything in a checkpoint but the time that it took, with tensors as bytes."""

    def flat(value):
        if isinstance(value, torch.Tensor):
            return (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
        if isinstance(value, dict):
            return {key: flat(item) for key, item in value.items() if key != "seconds"}
        if isinstance(value, (list, tuple)):
            return [flat(item) for item in value]
        return value

    return flat(load_checkpoint(Path(run_dir) / "checkpoint.pt"))


def stop_and_resume(run_dir, *, at, steps, **options):
    """Train with an interruption, as two processes would."""
    trainer = make(run_dir, **options, task=Hooked(copying(), **{f"at_{at}": interrupt}))
    with pytest.raises(InterruptedTraining):
        trainer.train(steps)
    torch.manual_seed(12345)  # what a new process has done with its random numbers
    resumed = make(run_dir, **options)
    resumed.resume()
    return resumed.train(steps)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_run_is_the_unbroken_one(tmp_path, optimizer):
    whole = make(tmp_path / "whole", optimizer).train(13)
    broken = stop_and_resume(tmp_path / "broken", at=6, steps=13, optimizer=optimizer)
    assert broken == whole
    assert state(tmp_path / "broken") == state(tmp_path / "whole")
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_resumed_scheduler_is_the_unbroken_one(tmp_path, scheduler):
    make(tmp_path / "whole", scheduler=scheduler).train(13)
    stop_and_resume(tmp_path / "broken", at=6, steps=13, scheduler=scheduler)
    assert state(tmp_path / "broken") == state(tmp_path / "whole")
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


@pytest.mark.parametrize("steps", [7, 10])
def test_longer_run_goes_on_where_a_finished_one_ended(tmp_path, steps):
    make(tmp_path / "whole").train(16)
    make(tmp_path / "parts").train(steps)
    resumed = make(tmp_path / "parts")
    resumed.resume()
    assert resumed.step == steps
    resumed.train(16)
    assert state(tmp_path / "parts") == state(tmp_path / "whole")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_run_killed_between_checkpoints_goes_on_from_the_last(tmp_path):
    make(tmp_path / "whole").train(13)

    with pytest.raises(SystemExit):
        make(tmp_path / "killed", task=Hooked(copying(), at_9=sys.exit)).train(13)
    with (tmp_path / "killed/metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 8, "lo')  # a line that was being written
    resumed = make(tmp_path / "killed")
    resumed.resume()
    assert resumed.step == 5
    resumed.train(13)
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert state(tmp_path / "killed") == state(tmp_path / "whole")


def test_ctrl_c_finishes_the_step_and_saves(tmp_path):
    make(tmp_path / "whole", checkpoint_every=1).train(7)
    handler = signal.getsignal(signal.SIGINT)
    trainer = make(tmp_path / "stopped", task=Hooked(copying(), at_6=interrupt))
    with pytest.raises(InterruptedTraining, match=r"after 7 steps.*checkpoint\.pt") as stop:
        trainer.train(100)
    assert stop.value.step == 7
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    assert signal.getsignal(signal.SIGINT) is handler


def test_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(tmp_path):
    def twice():
        interrupt()
        interrupt()

    trainer = make(tmp_path, task=Hooked(copying(), at_6=twice))
    with pytest.raises(KeyboardInterrupt) as stop:
        trainer.train(100)
    assert not isinstance(stop.value, InterruptedTraining)
    assert state(tmp_path)["step"] == 5


@pytest.mark.parametrize("times", [1, 2])
def test_sigterm_finishes_the_step_and_saves(tmp_path, times):
    def hook():
        for _ in range(times):  # a scheduler and a launcher may both send it
            terminate()

    make(tmp_path / "whole", checkpoint_every=1).train(7)
    trainer = make(tmp_path / "stopped", task=Hooked(copying(), at_6=hook))
    with pytest.raises(InterruptedTraining, match="after 7 steps") as stop:
        trainer.train(100)
    assert stop.value.signal == signal.SIGTERM
    assert state(tmp_path / "stopped") == state(tmp_path / "whole")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_after_sigterm_stops_at_once_when_it_comes_twice(tmp_path):
    def hook():
        terminate()
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt) as stop:
        make(tmp_path, task=Hooked(copying(), at_6=hook)).train(100)
    assert not isinstance(stop.value, InterruptedTraining)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_ones_own_for_sigterm_stays(tmp_path):
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        make(tmp_path, task=Hooked(copying(), at_2=terminate)).train(4)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]
    assert state(tmp_path)["step"] == 4


def test_a_forked_worker_dies_of_signals(tmp_path, monkeypatch):
    def hook():  # as a forked process sees itself
        monkeypatch.setattr("os.getpid", lambda: 0)
        interrupt()

    with pytest.raises(KeyboardInterrupt) as stop:
        make(tmp_path, task=Hooked(copying(), at_6=hook)).train(100)
    assert not isinstance(stop.value, InterruptedTraining)


def test_trains_outside_the_main_thread(tmp_path):
    import threading

    results = []
    thread = threading.Thread(target=lambda: results.append(make(tmp_path).train(3)))
    thread.start()
    thread.join()
    assert results


class Poisoned(Hooked):
    """A task whose loss or gradient is spoilt at one step."""

    def __init__(self, step, spoil):
        super().__init__(copying(), **{f"at_{step}": self.begin})
        self.spoil, self.spoiling = spoil, False

    def begin(self):
        self.spoiling = True

    def loss(self, output, target):
        loss = self.task.loss(output, target)
        if self.spoiling:
            self.spoiling = False
            return self.spoil(loss)
        return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["srcd-gs", "adam"])
# At a logged step; at one with a checkpoint; at the last one, which has neither.
@pytest.mark.parametrize(("step", "steps", "saved"), [(8, 100, 5), (5, 100, 0), (7, 8, 5)])
def test_loss_that_is_not_finite_stops_and_names_step_and_checkpoint(
    tmp_path, value, optimizer, step, steps, saved
):
    make(tmp_path / "good", optimizer).train(saved)
    trainer = make(tmp_path / "bad", optimizer, task=Poisoned(step, lambda loss: loss * value))
    with pytest.raises(DivergenceError) as caught:
        trainer.train(steps)
    assert caught.value.step == step
    assert str(caught.value) == (
        f"stopped at step {step}: the loss is {value}; the last good checkpoint is "
        f"{tmp_path / 'bad' / 'checkpoint.pt'}, of step {saved}"
    )
    assert state(tmp_path / "bad") == state(tmp_path / "good")


def test_derivative_that_is_not_finite_stops(tmp_path):
    def spoil(loss):  # its value is right, its derivative is not
        return loss + (loss - loss.detach()).sqrt()

    make(tmp_path / "good").train(5)
    with pytest.raises(DivergenceError, match=r"step 7: .* NaN or infinite.* of step 5") as caught:
        make(tmp_path / "bad", task=Poisoned(7, spoil)).train(100)
    assert caught.value.step == 7
    assert state(tmp_path / "bad") == state(tmp_path / "good")


def test_diverged_parameters_do_not_replace_a_good_checkpoint(tmp_path):
    # The step before a checkpoint spoils the parameters: what is saved next would be no good.
    trainer = make(tmp_path, "sgd", task=Poisoned(9, lambda loss: loss * 1e30 * 1e8))
    with pytest.raises(DivergenceError, match="of step 5"):
        trainer.train(11)
    assert state(tmp_path)["step"] == 5


def test_diverged_at_the_end_does_not_replace_a_good_checkpoint(tmp_path):
    class Fragile(Poisoned):
        def __getitem__(self, n):
            input, target = super().__getitem__(n)
            return (input * math.nan if n >= 8 else input), target

    with pytest.raises(DivergenceError, match=r"step 8: the test loss is nan.* of step 5"):
        make(tmp_path, task=Fragile(100, None)).train(8)
    assert state(tmp_path)["step"] == 5


def test_divergence_before_the_first_checkpoint(tmp_path):
    with pytest.raises(DivergenceError, match=r"step 0: .*there is no checkpoint yet"):
        make(tmp_path, task=Poisoned(0, lambda loss: loss * math.nan)).train(3)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_records(tmp_path):
    task = PixelDigits(batch_size=16)
    results = make(tmp_path, task=task, evaluate_every=3).train(7)
    logged = records(tmp_path)
    assert [r["step"] for r in logged] == [0, 2, 3, 4, 6, 7]
    assert [r["step"] for r in logged if "loss" in r] == [0, 2, 4, 6]
    assert [r["step"] for r in logged if "test loss" in r] == [0, 3, 6, 7]
    assert {"step": 7, **results} == logged[-1]
    assert set(results) == {"test loss", "test accuracy"}
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    assert table == read_metrics(tmp_path / "metrics.jsonl")
    seconds = [row["seconds"] for row in table]
    assert seconds == sorted(seconds)


def test_evaluation_is_on_batches_that_training_has_not_come_to(tmp_path):
    class Listening(Hooked):
        def __getitem__(self, n):
            self.asked.append(n)
            return super().__getitem__(n)

    task = Listening(copying())
    task.asked = []
    make(tmp_path, task=task, evaluate_every=3).train(5)
    unseen = [[*range(n, n + 8)] for n in (0, 3, 5)]
    assert task.asked == [0, *unseen[0], 1, 2, 3, *unseen[1], 4, *unseen[2]]


def test_loss_of_step_s_is_that_of_batch_s_after_s_updates(tmp_path):
    trainer = make(tmp_path, "sgd", log_every=1)
    trainer.model.rnn.dropout = 0.0
    twin = make(tmp_path / "twin", "sgd")
    twin.model.rnn.dropout = 0.0
    trainer.train(4)
    task, (optimizer,) = twin.task, twin.optimizers
    for step in range(4):
        input, target = task[step]
        loss = task.loss(twin.model(input), target)
        assert records(tmp_path)[step]["loss"] == float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_config_is_kept(tmp_path):
    make(tmp_path, config={"lr": 0.1, "sizes": [1, 2]}).train(1)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["config"] == {"lr": 0.1, "sizes": [1, 2]}
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["config"] == {"lr": 0.1, "sizes": [1, 2]}
    assert described["baseline"] == copying().baseline


def test_parameter_of_no_optimizer_keeps_its_value(tmp_path):
    trainer = make(tmp_path, "srcd-disjoint")  # only the recurrent matrices
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train(3)
    moved = {
        name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])
    }
    assert moved == {"rnn.weight_hh_l0", "rnn.weight_hh_l1"}


def test_another_run_in_the_folder_is_refused_or_replaced(tmp_path):
    make(tmp_path).train(6)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="holds a run already"):
        make(tmp_path).train(9)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    make(tmp_path).train(4, overwrite=True)
    assert state(tmp_path)["step"] == 4
    assert [r["step"] for r in records(tmp_path)] == [0, 2, 4]


def test_trainer_goes_on_with_its_own_run(tmp_path):
    make(tmp_path / "whole").train(9)
    trainer = make(tmp_path / "parts")
    trainer.train(4)
    trainer.train(9)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    with pytest.raises(ValueError, match="9 steps are done, so the total cannot be 8"):
        trainer.train(8)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"optimizer": "srcd-gs"}, r"optimizers are \['SRCD', 'Adam'\], those of this run"),
        ({"optimizer": "srcd-uniform"}, "optimizers are"),
        ({"scheduler": "plateau"}, r"its schedulers are \[\], those of this run"),
        ({"task": AddingProblem(length=3, batch_size=4)}, "size mismatch"),
    ],
)
def test_checkpoint_of_another_run_changes_nothing(tmp_path, other, message):
    make(tmp_path, "srcd-block").train(5)
    trainer = make(tmp_path, **({"optimizer": "srcd-block"} | other))
    before = repr(trainer.state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        trainer.resume()
    assert str(caught.value).startswith(f"{tmp_path / 'checkpoint.pt'} cannot be resumed: ")
    assert "\n" not in str(caught.value)
    assert repr(trainer.state_dict()) == before


def test_checkpoint_of_another_dtype_changes_nothing(tmp_path):
    make(tmp_path).train(5)
    trainer = make(tmp_path)
    trainer.model.double()
    before = repr(trainer.state_dict())
    with pytest.raises(
        CheckpointError, match=r"its rnn\.\w+ is torch\.float32, that of this run torch\.float64"
    ):
        trainer.resume()
    assert repr(trainer.state_dict()) == before


def test_state_that_is_wrong_in_any_way_changes_nothing(tmp_path):
    trainer = make(tmp_path, scheduler="multistep")
    trainer.train(3)
    other = trainer.state_dict()
    trainer = make(tmp_path, scheduler="multistep")
    before = repr(trainer.state_dict())
    for name in ["step", "seconds", "model", "optimizers", "schedulers", "random"]:
        for wrong in [None, "x", [], [None], {"x": 1}, torch.ones(3)]:
            with pytest.raises(CheckpointError, match="the state is of another run"):
                trainer.load_state_dict({**other, name: wrong})
            assert repr(trainer.state_dict()) == before


def test_damaged_checkpoint_names_the_previous_one_which_can_be_resumed(tmp_path):
    make(tmp_path / "whole").train(13)
    with pytest.raises(SystemExit):
        make(tmp_path / "parts", task=Hooked(copying(), at_12=sys.exit)).train(13)
    last, previous = (tmp_path / "parts" / f"checkpoint{s}.pt" for s in ("", ".previous"))
    good = previous.read_bytes()
    last.write_bytes(last.read_bytes()[:-9])
    resumed = make(tmp_path / "parts")
    before = content(tmp_path / "parts")
    with pytest.raises(
        CheckpointError, match=r"damaged.*previous\.pt: to go on.*resume\('previous'"
    ):
        resumed.resume()
    assert content(tmp_path / "parts") == before
    resumed.resume("previous")
    assert resumed.step == 5
    assert content(tmp_path / "parts") == before
    # The damaged one must not become the previous one: it gives way before anything is saved.
    seen = []
    resumed.task = Hooked(copying(), at_5=lambda: seen.append(last.read_bytes()))
    resumed.train(13)
    assert seen == [good]
    assert state(tmp_path / "parts") == state(tmp_path / "whole")
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert load_checkpoint(previous)["step"] == 10


def test_checkpoint_to_resume_is_the_last_or_the_previous_one(tmp_path):
    with pytest.raises(ValueError, match="must be 'last' or 'previous', got 'best'"):
        make(tmp_path).resume("best")
    make(tmp_path).train(0)
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*previous\.pt$"):
        make(tmp_path).resume("previous")


def test_another_process_in_the_folder_is_refused(tmp_path):
    make(tmp_path).train(4)
    before = content(tmp_path)
    with filelock.FileLock(tmp_path / ".lock"):
        for overwrite in (False, True):
            trainer = make(tmp_path, tensorboard=True)
            if not overwrite:
                trainer.resume()
            with pytest.raises(BlockingIOError, match="another process is training in"):
                trainer.train(9, overwrite=overwrite)
    assert content(tmp_path) == before
    assert not (tmp_path / "tensorboard").exists()
    trainer = make(tmp_path)
    trainer.resume()
    trainer.train(9)


def test_folder_is_locked_while_training(tmp_path):
    def another():
        with pytest.raises(BlockingIOError):
            make(tmp_path).train(3, overwrite=True)

    make(tmp_path, task=Hooked(copying(), at_1=another)).train(3)
    assert state(tmp_path)["step"] == 3


def test_temporary_files_of_killed_processes_go_and_others_stay(tmp_path):
    make(tmp_path).train(4)
    for name in (
        "checkpoint.pt",
        "checkpoint.previous.pt",
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
    ):
        (tmp_path / f".{name}.123.tmp").write_bytes(b"half")
    (tmp_path / ".loss.png.123.tmp").write_bytes(b"being drawn by another process")
    trainer = make(tmp_path)
    trainer.resume()
    trainer.train(5)
    assert [name for name in content(tmp_path) if name.endswith(".tmp")] == [".loss.png.123.tmp"]


def test_run_killed_before_its_first_checkpoint_starts_again(tmp_path):
    with pytest.raises(SystemExit):
        make(tmp_path, task=Hooked(copying(), at_0=sys.exit)).train(4)
    assert (tmp_path / "metrics.jsonl").exists()
    make(tmp_path).train(4)
    assert state(tmp_path)["step"] == 4


@settings(max_examples=5)
@given(left=st.integers(0, 40_000))
def test_full_disk_names_the_last_checkpoint_and_leaves_all_that_was_good(tmp_path_factory, left):
    tmp_path = tmp_path_factory.mktemp("full")
    make(tmp_path).train(5)
    before = content(tmp_path)
    trainer = make(tmp_path, checkpoint_every=1)
    trainer.resume()
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, 2_000 + left)  # enough for what is written before the first step
        with pytest.raises(OSError, match="No space left on device") as caught:
            trainer.train(1_000)
    assert caught.value.errno == errno.ENOSPC
    step = load_checkpoint(tmp_path / "checkpoint.pt")["step"]
    assert str(caught.value.strerror).endswith(
        f"; the last good checkpoint is {tmp_path / 'checkpoint.pt'}, of step {step}"
    )
    assert Path(caught.value.filename).parent == tmp_path
    assert content(tmp_path).keys() <= before.keys() | {"checkpoint.previous.pt"}
    resumed = make(tmp_path)
    resumed.resume()
    resumed.train(step + 3)
    make(tmp_path / "whole").train(step + 3)
    assert state(tmp_path) == state(tmp_path / "whole")
    assert records(tmp_path) == records(tmp_path / "whole")


def test_record_that_finds_no_room_names_its_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        FullDisk(patch, 5)
        log = JSONLinesLog(path)
        with pytest.raises(OSError, match="No space left on device") as caught:
            log.write({"step": 0})
        log.close()
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b'{"ste'
    assert read_metrics(path) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_folder_that_becomes_read_only_names_the_last_checkpoint(tmp_path, monkeypatch, number):
    real = Path.open

    def refuse(path, mode="r", *arguments, **options):
        if "w" in mode:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, mode, *arguments, **options)

    def protect():
        monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        make(tmp_path, task=Hooked(copying(), at_8=protect)).train(20)
    assert caught.value.errno == number
    assert f"last good checkpoint is {tmp_path / 'checkpoint.pt'}, of step 5" in str(caught.value)
    assert state(tmp_path)["step"] == 5


def test_records_are_on_the_disk_before_the_checkpoint_that_relies_on_them(tmp_path, monkeypatch):
    steps = []
    real_fsync, real_link = os.fsync, Path.replace

    def fsync(descriptor):
        steps.append(os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2])
        real_fsync(descriptor)

    def replace(path, target):
        steps.append(f"named {target.name}")
        return real_link(path, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    make(tmp_path).train(0)
    assert steps.index("metrics.jsonl") < steps.index("named checkpoint.pt")


def test_state_that_lacks_something_changes_nothing(tmp_path):
    trainer = make(tmp_path)
    full = trainer.state_dict()
    for name in full.keys() - {"config", "seconds"}:
        torch.manual_seed(8)
        before = repr(trainer.state_dict())
        with pytest.raises(CheckpointError, match=f"lacks '{name}'"):
            trainer.load_state_dict({key: full[key] for key in full if key != name})
        assert repr(trainer.state_dict()) == before


def test_damaged_metrics_are_refused_and_kept(tmp_path):
    make(tmp_path).train(6)
    metrics = tmp_path / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join([lines[0], b"garbage\n", *lines[2:]]))
    before = metrics.read_bytes()
    trainer = make(tmp_path)
    trainer.resume()
    with pytest.raises(MetricsError, match=r"metrics\.jsonl, line 2: not a record"):
        trainer.train(9)
    assert metrics.read_bytes() == before


def test_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        make(tmp_path / "file").train(1)
    with pytest.raises(NotADirectoryError):
        make(tmp_path / "file" / "below").train(1)
    assert (tmp_path / "file").read_text() == "mine"


def test_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    make(tmp_path / "good").train(5)

    def fill():
        monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "full")))

    with pytest.raises(OSError, match="full"):
        make(tmp_path / "full", task=Hooked(copying(), at_8=fill)).train(20)
    assert state(tmp_path / "full") == state(tmp_path / "good")


def test_tensorboard_has_on_the_disk_what_a_checkpoint_relies_on(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = []

    def look():
        events = EventAccumulator(str(tmp_path / "tensorboard"))
        events.Reload()
        shown.extend(event.step for event in events.Scalars("loss"))

    # The checkpoint of step 5 has been written when batch 6 is asked for.
    make(tmp_path, task=Hooked(copying(), at_6=look), tensorboard=True, log_every=1).train(7)
    assert set(shown) >= {0, 1, 2, 3, 4}


def test_tensorboard_shows_every_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(SystemExit):  # after step 8, so that 6 and 8 are written twice
        make(tmp_path, task=Hooked(copying(), at_9=sys.exit), tensorboard=True).train(12)
    trainer = make(tmp_path, tensorboard=True)
    trainer.resume()
    trainer.train(12)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    logged = [(r["step"], r["loss"]) for r in records(tmp_path) if "loss" in r]
    assert [step for step, _ in shown] == [step for step, _ in logged]
    assert dict(shown) == pytest.approx(dict(logged))


@pytest.mark.parametrize(
    ("missing", "options", "install"),
    [
        ("torch.utils.tensorboard", {"tensorboard": True}, r"givens\[tensorboard\]"),
        ("rich", {"progress": True}, r"givens\[cli\]"),
    ],
)
def test_missing_extra_is_named_before_anything_is_written(
    tmp_path, monkeypatch, missing, options, install
):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=f"is not installed: pip install '{install}'"):
        make(tmp_path / "run", **options).train(1)
    assert not (tmp_path / "run").exists()


def test_progress_bar_shows_loss_baseline_metric_and_speed(tmp_path, capsys):
    make(tmp_path, progress=True).train(6)
    shown = capsys.readouterr().err
    for part in ("6/6", "loss", "baseline", "recall", "/s"):
        assert part in shown


class First:
    """The task in the documentation of `Task`."""

    name, input_size, output_size, readout = "first symbol", 4, 4, "last"
    baseline, baseline_name = math.log(4), "guessing"

    def __getitem__(self, n):
        symbols = torch.randint(4, (6, 16), generator=torch.Generator().manual_seed(n))
        return one_hot(symbols, 4).float(), symbols[0]

    def loss(self, output, target):
        return cross_entropy(output, target)

    def metrics(self, output, target):
        return {"accuracy": (output.argmax(-1) == target).float().mean()}


@pytest.mark.parametrize("layer", [nn.RNN, nn.GRU, OrthogonalRNN])
def test_any_layer_learns_any_task(tmp_path, layer):
    torch.manual_seed(0)
    task = First()
    model = SequenceModel(layer(4, 24), 4, task.readout)
    points = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    optimizers = [torch.optim.Adam(others, 2e-2)]
    if points:
        optimizers.append(SRCD(points, 0.02, GaussSouthwell()))
    results = Trainer(model, optimizers, task, tmp_path, progress=False).train(150)
    assert results["test loss"] < 0.1 * task.baseline
    assert results["test accuracy"] > 0.95


def test_readout_of_every_step_or_the_last():
    torch.manual_seed(0)
    for batch_first in (False, True):
        rnn = OrthogonalRNN(3, 5, batch_first=batch_first)
        every, last = SequenceModel(rnn, 2, "every"), SequenceModel(rnn, 2, "last")
        last.linear = every.linear
        input = torch.randn(7, 4, 3)
        output = every(input)
        assert output.shape == (7, 4, 2)
        assert torch.equal(last(input), output[:, -1] if batch_first else output[-1])
    assert SequenceModel(nn.LSTM(3, 5), 2, "last")(torch.randn(7, 4, 3)).shape == (4, 2)
    assert torch.equal(every.linear.bias, torch.zeros(2))
    with pytest.raises(ValueError, match="'every' or 'last', got 'first'"):
        SequenceModel(rnn, 2, "first")


def test_readout_is_he_normal():
    torch.manual_seed(0)
    weight = SequenceModel(nn.RNN(2, 400), 300).linear.weight.detach()
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    assert abs(float(weight.mean())) < 1e-3


def test_evaluation_is_the_mean_and_leaves_the_model_alone(tmp_path):
    trainer = make(tmp_path)
    model, task = trainer.model.train(), trainer.task
    before = repr(trainer.state_dict())
    batches = [task[n] for n in range(3)]
    results = evaluate(model, task, iter(batches))
    assert model.training
    assert repr(trainer.state_dict()) == before
    model.eval()
    losses = [float(task.loss(model(input), target).detach()) for input, target in batches]
    assert results["loss"] == pytest.approx(sum(losses) / 3)
    assert set(results) == {"loss", "recall"}
    with pytest.raises(ValueError, match="no batch"):
        evaluate(model, task, [])


@pytest.mark.parametrize("option", ["log_every", "checkpoint_every", "evaluate_every"])
def test_bad_intervals_are_refused(tmp_path, option):
    with pytest.raises(ValueError, match=f"{option} must be .*at least 1, got 0"):
        make(tmp_path, **{option: 0})
