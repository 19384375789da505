import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import givens
from givens.rnn import cli
from givens.rnn.checkpoint import load_checkpoint, save_checkpoint
from givens.rnn.logs import read_metrics
from givens.rnn.tasks import CopyingMemory

TINY = "--hidden-size 8 --batch-size 4 --log-every 2 --checkpoint-every 5"
COPYING = f"train copying --length 3 --letters 2 --iterations 12 {TINY}"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def run(command):
    return cli.main(command.split())


def files(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def losses(run_dir):
    return [(r["step"], r.get("loss")) for r in read_metrics(run_dir / "metrics.jsonl")]


def recurrent_weight(run_dir):
    return load_checkpoint(run_dir / "checkpoint.pt")["model"]["rnn.weight_hh_l0"]


def check_error(capsys, command, status, *parts):
    """The command says what is wrong in one line, and changes no file."""
    before = files(Path.cwd())
    capsys.readouterr()
    assert run(command) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("givens: error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err
    assert files(Path.cwd()) == before


def test_train_writes_a_run_and_shows_results(folder, capsys):
    assert run(COPYING) == 0
    run_dir = folder / "runs" / "copying-srcd-block"
    assert {path.name for path in run_dir.iterdir()} == {
        ".lock",
        "checkpoint.previous.pt",
        "checkpoint.pt",
        "config.json",
        "loss.png",
        "metrics.csv",
        "metrics.jsonl",
    }
    assert (run_dir / "loss.png").read_bytes().startswith(PNG)
    assert [step for step, _ in losses(run_dir)] == [0, 2, 4, 6, 8, 10, 12]
    shown = capsys.readouterr()
    for part in ("test loss", "test recall", "baseline", "max |WᵀW − I|", "loss.png"):
        assert part in shown.out
    assert "12/12" in shown.err


GREEDY, RANDOM = "rule=GaussSouthwell(dtype=None)", "rule=Uniform()"


@pytest.mark.parametrize(
    ("moving", "other", "expected"),
    [
        ("--optimizer srgd --momentum 0.5", "", {"momentum": 0.5}),
        ("--selection uniform", "", {"selection": "Uniform()", "seed": 0}),
        ("--selection cyclic", "", {"selection": "Cyclic()"}),
        ("--selection gauss-southwell", "", {"selection": "GaussSouthwell(dtype=None)"}),
        (
            "--block-fraction 0.5",
            "",
            {"selection": f"Block(size=None, fraction=0.5, {GREEDY}, disjoint=False)"},
        ),
        (
            "--block-size 3 --block-rule uniform",
            "--seed 7",
            {
                "selection": f"Block(size=3, fraction=None, {RANDOM}, disjoint=False)",
                "seed": 7,
            },
        ),
        (
            "--block-size 4 --disjoint",
            "--other-optimizer sgd --other-lr 0.01 --dtype float64",
            {"selection": f"Block(size=4, fraction=None, {GREEDY}, disjoint=True)"},
        ),
        ("--optimizer srcd", "--other-optimizer adam --init haar --nonlinearity tanh", {}),
    ],
)
def test_w_moves_on_the_group_unless_frozen(folder, moving, other, expected):
    assert run(f"{COPYING} {other} --optimizer frozen --run-dir frozen") == 0
    assert run(f"{COPYING} {other} {moving} --lr 0.1 --run-dir moving") == 0
    optimizer = load_checkpoint(folder / "moving" / "checkpoint.pt")["optimizers"][0]
    assert {"lr": 0.1, **expected}.items() <= optimizer["state"]["param_groups"][0].items()
    W, W_moved = (recurrent_weight(folder / name) for name in ("frozen", "moving"))
    assert W.dtype == W_moved.dtype == (torch.float64 if "float64" in other else torch.float32)
    assert 1e-3 < (W_moved - W).abs().max() < 2
    assert (W_moved.T @ W_moved - torch.eye(8, dtype=W.dtype)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("moving", "dtype"),
    [
        ("--lr 0.1", torch.complex64),
        ("--optimizer srgd --lr 0.1 --dtype float64 --init henaff-expm", torch.complex128),
        ("--selection uniform --lr 0.1 --nonlinearity identity", torch.complex64),
        ("--block-size 4 --disjoint --lr 0.1 --other-optimizer adam", torch.complex64),
        ("--block-size 64 --other-optimizer sgd", torch.complex64),  # all d² coordinates
    ],
)
def test_unitary_network(folder, capsys, moving, dtype):
    unitary = f"{COPYING} --rnn unitary {moving}"
    assert run(f"{unitary} --run-dir whole") == 0
    assert "max |WᴴW − I|" in capsys.readouterr().out
    assert run(f"{unitary} --iterations 7 --run-dir parts") == 0
    start = recurrent_weight(folder / "parts")
    assert run("train copying --run-dir parts --resume --iterations 12") == 0
    whole, parts = (load_checkpoint(folder / name / "checkpoint.pt") for name in ("whole", "parts"))
    for name, value in whole["model"].items():
        assert torch.equal(value, parts["model"][name])
    assert repr(whole["optimizers"]) == repr(parts["optimizers"])
    assert whole["config"] == parts["config"]
    assert whole["config"]["rnn"] == "unitary"
    assert losses(folder / "whole") == losses(folder / "parts")
    W = recurrent_weight(folder / "whole")
    assert W.dtype == dtype
    assert (W - start).abs().max() > 1e-5
    assert (W.mH @ W - torch.eye(8)).abs().max() < 1e-6


def test_frozen_unitary_network_keeps_its_matrix(folder):
    frozen = f"{COPYING} --rnn unitary --optimizer frozen"
    assert run(f"{frozen} --iterations 1") == 0
    run_dir = folder / "runs" / "copying-unitary-frozen"
    start = recurrent_weight(run_dir)
    assert load_checkpoint(run_dir / "checkpoint.pt")["config"]["init"] == "phases"
    assert run(f"{frozen} --overwrite") == 0
    assert torch.equal(recurrent_weight(run_dir), start)
    assert (start - torch.diag(start.diagonal())).abs().max() == 0


@pytest.mark.parametrize(
    ("command", "metric"),
    [
        ("train adding --length 4", "test within 0.04"),
        ("train digits --permuted --evaluate-every 2", "test accuracy"),
    ],
)
def test_other_tasks(folder, capsys, command, metric):
    assert run(f"{command} {TINY} --iterations 4 --run-dir run") == 0
    assert metric in capsys.readouterr().out
    evaluated = [r["step"] for r in read_metrics(folder / "run/metrics.jsonl") if metric in r]
    assert evaluated == ([0, 2, 4] if "digits" in command else [4])


def test_resumed_run_is_the_unbroken_one(folder):
    options = "--selection block --block-size 4 --disjoint --lr 0.1 --seed 3"
    assert run(f"{COPYING} {options} --run-dir whole") == 0
    assert run(f"{COPYING} {options} --iterations 7 --run-dir parts") == 0
    assert run("train copying --run-dir parts --resume --iterations 12") == 0
    whole, parts = (load_checkpoint(folder / name / "checkpoint.pt") for name in ("whole", "parts"))
    assert repr(whole["model"]) == repr(parts["model"])
    assert repr(whole["optimizers"]) == repr(parts["optimizers"])
    assert whole["config"] == parts["config"]
    assert losses(folder / "whole") == losses(folder / "parts")


def test_resume_can_change_the_learning_rates(folder):
    assert run(f"{COPYING} --run-dir run --lr 0.1") == 0
    W = recurrent_weight(folder / "run")
    assert run("train copying --run-dir run --resume --iterations 20 --lr 0 --other-lr 0.5") == 0
    state = load_checkpoint(folder / "run" / "checkpoint.pt")
    assert state["config"]["lr"] == 0
    rates = [o["state"]["param_groups"][0]["lr"] for o in state["optimizers"]]
    assert rates == [0, 0.5]
    # Still W up to the rounding that restoring takes away.
    assert (state["model"]["rnn.weight_hh_l0"] - W).abs().max() < 1e-6


def test_seed_decides_the_run(folder):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(f"{COPYING} --seed {seed} --run-dir {name}") == 0
    assert losses(folder / "a") == losses(folder / "b")
    assert losses(folder / "a") != losses(folder / "c")


def test_tensorboard_option(folder):
    pytest.importorskip("tensorboard")
    assert run(f"{COPYING} --run-dir run --tensorboard") == 0
    assert list((folder / "run" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_say_how_to_go_on(folder, capsys, monkeypatch, number):
    whole = f"{COPYING} --run-dir whole"
    assert run(whole) == 0
    batch = CopyingMemory.__getitem__

    def interrupting(task, n):
        if n == 6:
            signal.raise_signal(number)
        return batch(task, n)

    with monkeypatch.context() as patch:
        patch.setattr(CopyingMemory, "__getitem__", interrupting)
        capsys.readouterr()
        assert run(f"{COPYING} --run-dir run") == 128 + number
    last = capsys.readouterr().err.splitlines()[-1]
    command = "givens train copying --run-dir run --resume"
    assert last == f"givens: interrupted after 7 steps, and saved; to go on: {command}"
    assert run(command.removeprefix("givens ")) == 0
    assert losses(folder / "run") == losses(folder / "whole")


def test_resume_from_the_checkpoint_before_a_damaged_one(folder, capsys):
    assert run(f"{COPYING} --run-dir run") == 0
    whole = losses(folder / "run")
    last = folder / "run" / "checkpoint.pt"
    last.write_bytes(last.read_bytes()[:-9])
    resume = "train copying --run-dir run --resume"
    check_error(capsys, resume, 1, "checkpoint.pt is damaged", "--resume previous")
    assert run(f"{resume} previous") == 0
    assert load_checkpoint(last)["step"] == 12
    assert losses(folder / "run") == whole
    check_error(capsys, f"{resume} first", 2, "'last', 'previous'")


def test_divergence_names_the_step_and_the_checkpoint(folder, capsys, monkeypatch):
    batch = CopyingMemory.__getitem__

    def poisoned(task, n):
        input, target = batch(task, n)
        return (input * float("nan") if n == 8 else input), target

    monkeypatch.setattr(CopyingMemory, "__getitem__", poisoned)
    assert run(f"{COPYING} --run-dir run") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("givens: error: stopped at step 8: the loss is nan; ")
    assert last.endswith("checkpoint is run/checkpoint.pt, of step 5")
    assert load_checkpoint(folder / "run" / "checkpoint.pt")["step"] == 5


def test_plot_draws_several_runs(folder, capsys):
    assert run(f"{COPYING} --run-dir a") == 0
    assert run(f"train adding --length 3 {TINY} --iterations 4 --run-dir b") == 0
    capsys.readouterr()
    for name, start in (("both.png", PNG), ("both.svg", b"<?xml"), ("both.pdf", b"%PDF")):
        assert run(f"plot a b -o {name}") == 0
        assert capsys.readouterr().out == f"{name}\n"
        assert (folder / name).read_bytes().startswith(start)
    drawing = (folder / "both.svg").read_text()
    for text in (
        "a",
        "b",
        "copying memory, L = 3, K = 2",
        "adding problem, 3 steps",
        "baseline, no memory: 0.594",
        "baseline, always answering 1: 0.167",
        "training loss",
        "step",
    ):
        assert f"<!-- {text} -->" in drawing


def test_plot_errors(folder, capsys):
    assert run(f"{COPYING} --run-dir a") == 0
    (folder / "empty").mkdir()
    check_error(capsys, "plot", 2, "Missing argument 'RUN...'")
    check_error(capsys, "plot empty", 1, "empty holds no run")
    check_error(capsys, "plot nowhere", 1, "nowhere holds no run")
    check_error(capsys, "plot a -o a.xyz", 1, "a.xyz", "png")
    check_error(capsys, "plot a -o a/config.json/x.png", 1, "Not a directory")
    (folder / "empty" / "config.json").write_text("[]")
    check_error(capsys, "plot empty", 1, "not the description of a run")
    (folder / "a" / "metrics.jsonl").write_text("")
    check_error(capsys, "plot a", 1, "a has no loss to plot yet")
    (folder / "a" / "metrics.jsonl").write_text("what?\n")
    check_error(capsys, "plot a", 1, "metrics.jsonl, line 1")


def test_info_lists_what_there_is(capsys):
    assert run("info") == 0
    shown = capsys.readouterr().out
    for part in (
        givens.__version__,
        torch.__version__,
        "copying",
        "cyclic",
        "OrthogonalGroup",
        "unitary",
        "phases",
    ):
        assert part in shown


@pytest.mark.parametrize("command", ["", "train", "--help", "train -h", "train copying --help"])
def test_help(capsys, command):
    assert run(command) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("Usage: givens")
    assert "xample" in shown.out or "Ctrl-C" in shown.out
    assert shown.err == ""


def test_version(capsys):
    assert run("--version") == 0
    assert givens.__version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("fly", ["No such command 'fly'", "givens --help"]),
        ("train walking", ["No such command 'walking'", "givens train --help"]),
        ("train copying --lenght 3", ["--lenght", "--length", "givens train copying --help"]),
        ("train copying --optimizer sgd", ["'sgd' is not one of 'srcd', 'srgd', 'frozen'"]),
        ("train copying --lr -1", ["--lr", "-1"]),
        ("train copying --lr nan", ["--lr", "nan"]),
        ("train copying --lr inf", ["--lr", "inf"]),
        ("train copying --lr 1e31", ["--lr", "1e+31 is not a number from 0 to 1e+30"]),
        ("train copying --length 2147483647", ["GiB of memory or more", "lower --hidden-size"]),
        ("train copying --hidden-size 65537", ["--hidden-size", "65537"]),
        ("train copying --batch-size 99999999999999999999", ["--batch-size"]),
        ("train copying --momentum 1", ["--momentum"]),
        ("train copying --hidden-size 1", ["--hidden-size", "1 is not in the range 2<=x<=65536"]),
        ("train copying --length 0", ["--length"]),
        ("train copying --seed -1", ["--seed"]),
        ("train copying --device warp", ["torch cannot use 'warp'"]),
        ("train copying --iterations many", ["'many' is not a valid integer"]),
        ("train copying --resume --overwrite", ["exclude each other"]),
        ("train copying --optimizer srgd --selection block", ["--selection is for --optimizer"]),
        ("train copying --optimizer srcd --momentum 0.5", ["--momentum is for --optimizer srgd"]),
        ("train copying --optimizer frozen --lr 1", ["--lr is the stepsize of W"]),
        ("train copying --selection cyclic --block-size 3", ["for --selection block"]),
        ("train copying --optimizer srgd --block-size 3", ["for --optimizer srcd"]),
        ("train copying --block-size 3 --block-fraction 0.1", ["not both"]),
        ("train copying --block-fraction 0", ["--block-fraction"]),
        ("train copying --hidden-size 8 --block-size 29", ["29", "there are 28"]),
        (
            "train copying --hidden-size 8 --block-size 5 --disjoint",
            ["a block of 5 coordinates is too large", "there are 4 disjoint ones"],
        ),
        ("train copying --hidden-size 8 --rnn unitary --block-size 65", ["65", "there are 64"]),
        ("train copying --rnn unitary --nonlinearity tanh", ["'tanh' is not for complex states"]),
        ("train copying --init phases", ["'phases'; choose one of henaff-cayley"]),
        ("train copying --rnn quaternion", ["'quaternion' is not one of 'orthogonal', 'unitary'"]),
        ("train digits --batch-size 1438", ["batch_size must be at most 1437"]),
        ("train adding --length 1", ["--length"]),
    ],
)
def test_wrong_call_is_one_line(capsys, command, parts):
    check_error(capsys, command, 2, *parts)


@pytest.mark.parametrize(
    ("path", "reason"),
    [("", "empty"), ("a\0b", "cannot be shown"), ("\udcff", "cannot be shown"), ("a\nb", "shown")],
)
def test_a_path_that_cannot_be_named_is_refused(folder, capsys, path, reason):
    for arguments in (
        ["train", "copying", "--run-dir", path],
        ["plot", path],
        ["plot", "a", "-o", path],
    ):
        assert cli.main(arguments) == 2
        assert reason in capsys.readouterr().err
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("hidden_size", 10**9, "not in the range"),
        ("hidden_size", "8", "not of its type"),
        ("hidden_size", [8], "not of its type"),
        ("lr", -1.0, "not a number from 0"),
        ("optimizer", "sgd", "is not one of"),
        ("device", "warp", "torch cannot use"),
    ],
)
def test_settings_of_a_checkpoint_are_held_to_those_of_a_call(folder, capsys, name, value, reason):
    assert run(f"{COPYING} --run-dir run") == 0
    checkpoint = folder / "run" / "checkpoint.pt"
    state = load_checkpoint(checkpoint)
    state["config"][name] = value
    save_checkpoint(checkpoint, state)
    check_error(capsys, "train copying --run-dir run --resume", 1, "cannot be resumed", reason)
    del state["config"]
    save_checkpoint(checkpoint, state)
    check_error(capsys, "train copying --run-dir run --resume", 2, "does not hold a run")


def test_a_run_without_a_loss_ends_well_without_a_picture(folder, capsys):
    assert run(f"{COPYING} --run-dir run --iterations 3 --log-every 100") == 0
    (folder / "run" / "metrics.jsonl").write_text("")
    assert run("train copying --run-dir run --resume --iterations 4") == 0
    assert "no picture was drawn" in capsys.readouterr().err


def test_existing_run_is_refused_unless_resumed_or_overwritten(folder, capsys):
    assert run(f"{COPYING} --run-dir run") == 0
    check_error(capsys, f"{COPYING} --run-dir run", 2, "run holds a run already", "--overwrite")
    assert run(f"{COPYING} --run-dir run --overwrite --iterations 4") == 0
    assert [step for step, _ in losses(folder / "run")] == [0, 2, 4]


def test_failed_overwrite_keeps_the_old_run(folder, capsys, monkeypatch):
    assert run(f"{COPYING} --run-dir run") == 0
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    check_error(
        capsys, f"{COPYING} --run-dir run --overwrite --tensorboard", 1, "givens[tensorboard]"
    )


def test_resume_errors(folder, capsys):
    check_error(capsys, "train copying --resume", 1, "no checkpoint at runs/copying-srcd-block")
    assert run(f"{COPYING} --run-dir run") == 0
    resume = "--run-dir run --resume"
    check_error(capsys, f"train adding {resume}", 2, "not hold a run of givens train adding")
    check_error(
        capsys, f"train copying {resume} --length 4", 2, "started with --length 3", "change to 4"
    )
    check_error(capsys, f"train copying {resume} --optimizer srgd", 2, "--optimizer srcd")
    check_error(capsys, f"train copying {resume} --rnn unitary", 2, "--rnn orthogonal")
    check_error(capsys, f"train copying {resume} --iterations 7", 2, "at step 12 already")
    checkpoint = folder / "run" / "checkpoint.pt"
    good = checkpoint.read_bytes()
    checkpoint.write_bytes(good[:-100])
    check_error(capsys, f"train copying {resume}", 1, "run/checkpoint.pt is damaged")
    torch.save({"weight": torch.zeros(3)}, checkpoint)
    check_error(capsys, f"train copying {resume}", 1, "is not a checkpoint of givens")
    checkpoint.write_bytes(good)
    state = load_checkpoint(checkpoint)
    state["model"]["linear.bias"] = torch.zeros(3)
    save_checkpoint(checkpoint, state)
    check_error(capsys, f"train copying {resume}", 1, "run/checkpoint.pt cannot be resumed")
    checkpoint.write_bytes(good)
    metrics = folder / "run" / "metrics.jsonl"
    metrics.write_bytes(b"what?\n" + metrics.read_bytes())
    check_error(capsys, f"train copying {resume} --iterations 20", 1, "metrics.jsonl, line 1")


def test_folder_that_cannot_be_written(folder, capsys, monkeypatch):
    (folder / "file").write_text("mine")
    check_error(capsys, f"{COPYING} --run-dir file", 1, "file is a file, not a folder")
    check_error(capsys, f"{COPYING} --run-dir file/run", 1, "file/run", "Not a directory")

    def denied(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    check_error(capsys, f"{COPYING} --run-dir locked", 1, "locked: Permission denied")


def test_only_the_command_needs_the_extra():
    code = (
        "import sys\n"
        "for name in ('click', 'rich', 'matplotlib', 'sklearn', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "import givens\n"
        "print('imported')\n"
        "import givens.rnn.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "imported\n"
    assert done.stderr == "givens: error: click is not installed: pip install 'givens[cli]'\n"


def test_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "givens.rnn", "train", "copying", "--bad"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("givens: error: No such option")
    assert done.stderr.endswith("(see givens train copying --help)\n")


def test_config_describes_the_run(folder):
    assert run(f"{COPYING} --run-dir run --seed 5") == 0
    described = json.loads((folder / "run" / "config.json").read_text())
    assert described["task"] == "copying memory, L = 3, K = 2"
    assert described["config"]["seed"] == 5
    assert described["config"]["optimizer"] == "srcd"
