"""Other people's training loops: each example of the page works, and does what a bare loop does."""

import copy
import io
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from geoopt import ManifoldParameter
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from givens.manifolds import OrthogonalGroup, constrain
from givens.optim import SRCD, Matching
from givens.rnn.logs import read_metrics

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples" / "ecosystem"

lightning_warns = [
    # Lightning's use of torch's own trees
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\):FutureWarning"),
    # its advice: the batches are in memory, and a resumed run need not write checkpoints
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning"),
]


def lightning(test):
    """Mark a test that trains with Lightning."""
    for mark in lightning_warns:
        test = mark(test)
    return pytest.mark.usefixtures("lightning_or_skip")(test)


@pytest.fixture
def lightning_or_skip():
    pytest.importorskip("pytorch_lightning")


@pytest.fixture
def accelerate():
    module = pytest.importorskip("accelerate")
    yield module
    module.state.AcceleratorState._reset_state(reset_partial_state=True)
    module.state.GradientState._reset_state()


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    """A folder of its own for what is written, and torch's random state as before."""
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["runs"])


def example(name: str, *, run: bool = False) -> dict:
    """Return the names of an example; `run` carries it out as a script."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__" if run else name)


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(one: list[Tensor], other: list[Tensor]) -> None:
    """To the last bit."""
    for p, q in zip(one, other, strict=True):
        assert torch.equal(p, q)


def assert_orthogonal(model: nn.Module, atol: float = 1e-6) -> None:
    points = [p for p in model.parameters() if isinstance(p, ManifoldParameter)]
    assert points
    for p in points:
        assert p.manifold.check_point_on_manifold(p.detach().double(), atol=atol)


def through_a_file(state: dict) -> dict:
    """As ``torch.load`` reads it with its defaults, which execute nothing."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def test_the_page_shows_every_example():
    page = (ROOT / "docs" / "ecosystem.md").read_text(encoding="utf-8")
    for path in EXAMPLES.glob("*.py"):
        assert f"```{{literalinclude}} examples/ecosystem/{path.name}\n" in page


# Lightning and Accelerate


def bare_loop(names, model, optimizer, scheduler) -> nn.Module:
    """What both examples do, in a loop of one's own: accumulate, clip, step, schedule."""
    for _ in range(names["EPOCHS"]):
        for n in range(names["BATCHES"]):
            input, target = names["TASK"][n]
            (names["TASK"].loss(model(input), target) / names["ACCUMULATED"]).backward()
            if (n + 1) % names["ACCUMULATED"] == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    return model


@lightning
def test_lightning_resumes_to_the_bit_and_trains_like_a_bare_loop():
    names = example("lightning_groups", run=True)
    assert names["loss"] < 0.5 * names["TASK"].baseline
    assert_orthogonal(names["module"])
    assert_equal(values(names["resumed"]), values(names["module"]))

    torch.manual_seed(0)
    bare = names["Copying"]()
    (optimizer,), (config,) = bare.configure_optimizers()
    bare_loop(names, bare.model, optimizer, config["scheduler"])
    # The same bits with the newest versions; with the oldest ones a last digit differs.
    torch.testing.assert_close(values(bare), values(names["module"]), rtol=0, atol=1e-5)


def fit_manual(module, batches, **options):
    import pytorch_lightning as pl

    ways = {
        "default_root_dir": "runs",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    checkpoint = options.pop("checkpoint", None)
    trainer = pl.Trainer(**ways, **options)
    data = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return trainer


@lightning
def test_lightning_with_two_optimizers():
    """Manual optimization: learns, is a bare loop, and resumes to the same bits."""
    names = example("lightning_manual", run=True)
    assert names["loss"] < 0.5 * names["TASK"].baseline
    assert_orthogonal(names["module"])

    task, batches = names["TASK"], [names["TASK"][n] for n in range(10)]
    torch.manual_seed(0)
    whole = names["Copying"]()
    stopped, resumed, bare = (copy.deepcopy(whole) for _ in range(3))
    fit_manual(whole, batches, max_epochs=2)
    fit_manual(stopped, batches, max_epochs=1).save_checkpoint("runs/half.ckpt")
    fit_manual(resumed, batches, max_epochs=2, checkpoint="runs/half.ckpt")
    assert_equal(values(resumed), values(whole))

    optimizers, schedulers = bare.configure_optimizers()
    for input, target in batches * 2:
        bare.zero_grad()
        task.loss(bare.model(input), target).backward()
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            scheduler.step()
    assert_equal(values(bare), values(whole))


@lightning
@pytest.mark.parametrize(
    ("precision", "dtype", "atol"),
    [("bf16-mixed", torch.float32, 1e-6), ("64-true", torch.float64, 1e-13)],
)
def test_lightning_in_other_precisions(precision, dtype, atol):
    names = example("lightning_groups")
    torch.manual_seed(0)
    module = names["Copying"]()
    trainer = names["fit"](module, 2, precision=precision, enable_checkpointing=False)
    assert float(trainer.callback_metrics["loss"]) < names["TASK"].baseline
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert_orthogonal(module, atol)


@lightning
@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_lightning_in_half_precision_is_refused(precision):
    names = example("lightning_groups")
    with pytest.raises(ValueError, match="float32 and float64"):
        names["fit"](names["Copying"](), 1, precision=precision, enable_checkpointing=False)


def test_accelerate_trains_and_resumes_to_the_bits_of_a_bare_loop(accelerate):
    names = example("accelerate_loop", run=True)
    assert names["loss"] < 0.5 * names["TASK"].baseline
    assert_orthogonal(names["model"])
    assert_equal(values(names["again"]), values(names["model"]))

    torch.manual_seed(0)
    unprepared = SimpleNamespace(prepare=lambda *parts: parts)
    bare, optimizer, _, scheduler = names["prepared"](unprepared)
    bare_loop(names, bare, optimizer, scheduler)
    assert_equal(values(bare), values(names["model"]))


def test_accelerate_saves_plain_data(accelerate):
    names = example("accelerate_loop")
    accelerator = accelerate.Accelerator()
    parts = names["prepared"](accelerator)
    names["train_epoch"](accelerator, *parts)
    accelerator.save_state("runs/accelerate")
    for name in ("optimizer.bin", "scheduler.bin"):
        torch.load(f"runs/accelerate/{name}", weights_only=True)


def test_accelerate_in_bfloat16(accelerate):
    names = example("accelerate_loop")
    torch.manual_seed(0)
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=2, mixed_precision="bf16")
    model, *others = names["prepared"](accelerator)
    for _ in range(2):
        loss = names["train_epoch"](accelerator, model, *others)
    assert loss < names["TASK"].baseline
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert_orthogonal(model)


# torch's schedulers and averages


def test_every_schedule_that_decreases_comes_closer_than_a_constant_rate():
    names = example("schedulers")
    off = {schedule: names["fit"](schedule) for schedule in names["SCHEDULES"]}
    constant = off.pop("constant")
    assert max(off.values()) < 0.6 * constant


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")  # SequentialLR's own
@pytest.mark.parametrize("schedule", example("schedulers")["SCHEDULES"])
def test_a_schedule_resumes_to_the_same_bits(schedule):
    make = example("schedulers")["SCHEDULES"][schedule]
    manifold = OrthogonalGroup()
    target = manifold.random(5, 5, generator=torch.Generator().manual_seed(0))

    def build(lr=0.2):
        weight = ManifoldParameter(torch.eye(5), manifold=manifold)
        optimizer = SRCD([weight], lr=lr, selection=Matching())
        return weight, optimizer, make(optimizer)

    def train(weight, optimizer, scheduler, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (weight - target).square().sum()
            loss.backward()
            optimizer.step()
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(*[loss.item()] * plateau)

    whole = build()
    train(*whole, 45)
    weight, *stateful = whole
    saved = through_a_file(
        {"weight": weight.detach(), "others": [part.state_dict() for part in stateful]}
    )
    train(*whole, 45)

    resumed = build(lr=0.7)
    with torch.no_grad():
        resumed[0].copy_(saved["weight"])
    for part, state in zip(resumed[1:], saved["others"], strict=True):
        part.load_state_dict(state)
    train(*resumed, 45)
    assert torch.equal(resumed[0], weight)
    assert resumed[1].param_groups[0]["lr"] == whole[1].param_groups[0]["lr"]


def test_an_average_is_closer_than_the_last_iterate():
    names = example("averaging", run=True)
    for name in ("SWA", "EMA"):
        assert names["off"][name] < 0.8 * names["off"]["last"]
        assert_orthogonal(names["averages"][name])


@lightning
def test_lightning_averages_and_resumes_to_the_same_bits():
    names = example("lightning_averaging", run=True)
    assert names["off"]["averaged"] < 0.8 * names["off"]["last"]
    assert_orthogonal(names["averaging"].averaged)

    def parts():
        return names["Rotation"](), names["Averaging"](every=7)

    whole, stopped, resumed = parts(), parts(), parts()
    names["fit"](*whole, epochs=2)
    names["fit"](*stopped, epochs=1).save_checkpoint("runs/half.ckpt")
    names["fit"](*resumed, epochs=2, checkpoint="runs/half.ckpt")
    assert_equal(values(resumed[0]), values(whole[0]))
    assert_equal(values(resumed[1].averaged), values(whole[1].averaged))
    assert int(whole[1].averaged.n_averaged) == 2 * 60 // 7


# Parametrized neighbours


def test_neighbours_train_together():
    names = example("neighbours", run=True)
    assert names["losses"][-1] < 1e-2 * names["losses"][0]
    for name, layer in names["model"].named_children():
        if name != "weight norm":
            weight = layer.weight.detach()
            torch.testing.assert_close(weight.T @ weight, torch.eye(16), rtol=0, atol=2e-6)


def test_one_optimizer_for_neighbours_is_two():
    """SRCD for the point, torch's Adam for what the parametrized weights are computed from."""
    names = example("neighbours")
    torch.manual_seed(0)
    together = names["make_model"]()
    apart = copy.deepcopy(together)
    names["train"](together, names["make_optimizer"](together), 20)

    point = apart.givens.weight
    others = [p for p in apart.parameters() if p is not point]

    class Both:
        parts = (SRCD([point], 0.05, Matching("greedy")), torch.optim.Adam(others, 0.01))

        def zero_grad(self):
            for part in self.parts:
                part.zero_grad()

        def step(self):
            for part in self.parts:
                part.step()

    names["train"](apart, Both(), 20)
    for p, q in zip(values(together), values(apart), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-4)


def test_a_module_with_a_manifold_parameter_takes_a_parametrization_beside_it():
    layer = constrain(nn.Linear(4, 4), "weight", OrthogonalGroup())
    point = layer.weight
    parametrize.register_parametrization(layer, "bias", nn.Tanh())
    assert layer.weight is point
    copied = copy.deepcopy(layer)
    assert isinstance(copied.weight, ManifoldParameter)
    copied.load_state_dict(layer.state_dict(), assign=True)
    assert isinstance(copied.weight, ManifoldParameter)


def test_a_parametrized_weight_is_not_constrained():
    """It is computed: there is no parameter of that name."""
    layer = parametrizations.orthogonal(nn.Linear(4, 4))
    with pytest.raises(AttributeError, match=r"no parameter 'weight'; it has \['bias'\]"):
        constrain(layer, "weight", OrthogonalGroup())


# Optuna


def test_a_sweep_finds_a_good_trial_and_prunes_and_repeats_itself():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names = example("sweep")
    study = names["sweep"](8)
    assert study.best_value < 0.1 * names["TASK"].baseline
    pruned = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.last_step < names["REPORTS"][-1]
    again = names["sweep"](2)
    for one, other in zip(again.trials, study.trials[:2], strict=True):
        assert one.params == other.params
        assert one.state == other.state
        assert one.intermediate_values == other.intermediate_values


def test_the_sweep_is_short():
    assert len((EXAMPLES / "sweep.py").read_text(encoding="utf-8").splitlines()) < 60


# TensorBoard


def test_tensorboard_shows_what_the_run_has_recorded():
    pytest.importorskip("tensorboard")
    names = example("tensorboard_scalars", run=True)
    records = read_metrics(names["FOLDER"] / "metrics.jsonl")
    assert set(names["scalars"]) == set().union(*records) - {"step"}
    for tag, shown in names["scalars"].items():
        recorded = {record["step"]: record[tag] for record in records if tag in record}
        assert {event.step: event.value for event in shown} == pytest.approx(recorded)
    losses = [event.value for event in names["scalars"]["loss"]]
    assert losses[-1] < 0.1 * losses[0]
