import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from givens.rnn.tasks import AddingProblem, CopyingMemory, HeldOut, PixelDigits

TASKS = {
    "copying": lambda seed: CopyingMemory(length=7, letters=3, batch_size=5, seed=seed),
    "adding": lambda seed: AddingProblem(length=9, batch_size=5, seed=seed),
    "digits": lambda seed: PixelDigits(batch_size=5, seed=seed),
    "permuted digits": lambda seed: PixelDigits(permuted=True, batch_size=5, seed=seed),
}
tasks = pytest.mark.parametrize("make", TASKS.values(), ids=TASKS)


def same(batch, other):
    return all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@tasks
def test_batch_is_a_function_of_seed_and_number(make):
    task, again, other = make(3), make(3), make(4)
    batches = [task[n] for n in range(6)]
    assert all(same(task[n], batches[n]) for n in (4, 0, 5, 2))
    assert all(same(again[n], batches[n]) for n in (1, 3, 5))
    assert not any(same(a, b) for a, b in itertools.combinations(batches, 2))
    assert not any(same(other[n], batches[m]) for n in range(3) for m in range(6))


@tasks
def test_batch_leaves_global_random_numbers_alone(make):
    task = make(0)
    state = torch.get_rng_state()
    task[0]
    assert torch.equal(torch.get_rng_state(), state)


@tasks
def test_task_is_iterable(make):
    task = make(0)
    batches = list(itertools.islice(task, 3))
    assert all(same(batch, task[n]) for n, batch in enumerate(batches))


@tasks
def test_negative_batch_is_refused(make):
    with pytest.raises(IndexError, match="from 0, got -1"):
        make(0)[-1]


@tasks
def test_shapes_follow_the_attributes(make):
    task = make(0)
    input, target = task[0]
    steps, batch, features = input.shape
    assert (batch, features) == (5, task.input_size)
    assert target.shape[: (2 if task.readout == "every" else 1)] == (
        (steps, batch) if task.readout == "every" else (batch,)
    )
    leading = (steps, batch) if task.readout == "every" else (batch,)
    output = torch.zeros(*leading, task.output_size, requires_grad=True)
    loss = task.loss(output, target)
    assert loss.shape == ()
    loss.backward()
    assert output.grad.abs().max() > 0
    assert all(0 <= value <= 1 for value in task.metrics(output, target).values())


@given(length=st.integers(1, 30), letters=st.integers(1, 6), seed=st.integers(0, 2**40))
def test_copying_input_and_target(length, letters, seed):
    task = CopyingMemory(length, letters, batch_size=4, seed=seed)
    input, target = task[seed % 11]
    steps = length + 2 * letters
    assert input.shape == (steps, 4, 10)
    assert target.shape == (steps, 4)
    # One-hot: zeros, and a single one.
    assert torch.equal(input.sum(-1), torch.ones(steps, 4))
    assert set(input.unique().tolist()) == {0.0, 1.0}
    symbols = input.argmax(-1)
    # Letters first, blanks, the start symbol as many steps before the end as there are letters.
    assert ((symbols[:letters] >= 1) & (symbols[:letters] <= 8)).all()
    rest = symbols[letters:]
    assert (rest[length] == 9).all()
    assert (torch.cat((rest[:length], rest[length + 1 :])) == 0).all()
    # The targets are blanks, then the letters in their order.
    assert (target[:-letters] == 0).all()
    assert torch.equal(target[-letters:], symbols[:letters])


def test_copying_letters_are_uniform():
    _, target = CopyingMemory(length=1, letters=10, batch_size=4000, seed=1)[0]
    counts = torch.bincount(target[-10:].flatten(), minlength=9)[1:].double()
    expected = 40_000 / 8
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-square, 7 degrees, 0.1 %


@given(length=st.integers(1, 40), letters=st.integers(1, 12))
def test_copying_baseline_is_the_best_memoryless_cross_entropy(length, letters):
    # The best predictor that knows the place and not the letters puts on each class its frequency
    # at that place; its loss is the mean entropy. Frequencies: exact, over all 8 letters.
    steps = length + 2 * letters
    probabilities = torch.zeros(steps, 9, dtype=torch.float64)
    probabilities[:-letters, 0] = 1
    probabilities[-letters:, 1:] = 1 / 8
    entropy = torch.special.entr(probabilities).sum(-1).mean()
    task = CopyingMemory(length, letters, batch_size=2)
    assert task.baseline == pytest.approx(float(entropy), rel=1e-12)
    # And the task's own loss gives it to that predictor.
    _, target = task[0]
    output = probabilities.clamp(min=1e-300).log()[:, None].expand(-1, 2, -1)
    assert float(task.loss(output, target)) == pytest.approx(task.baseline, rel=1e-6)


def test_copying_recall_counts_letters_only():
    task = CopyingMemory(length=5, letters=4, batch_size=3)
    _, target = task[0]
    output = torch.nn.functional.one_hot(target, 9).float()
    assert float(task.metrics(output, target)["recall"]) == 1
    blanks = torch.nn.functional.one_hot(torch.zeros_like(target), 9).float()
    assert float(task.metrics(blanks, target)["recall"]) == 0
    output[-1] = blanks[-1]
    assert float(task.metrics(output, target)["recall"]) == pytest.approx(3 / 4)


@given(length=st.integers(2, 40), seed=st.integers(0, 2**40))
def test_adding_target_is_the_marked_sum(length, seed):
    task = AddingProblem(length, batch_size=6, seed=seed, dtype=torch.float64)
    input, target = task[seed % 7]
    numbers, marks = input.unbind(-1)
    assert ((numbers >= 0) & (numbers < 1)).all()
    half = length // 2
    assert torch.equal(marks[:half].sum(0), torch.ones(6, dtype=torch.float64))
    assert torch.equal(marks[half:].sum(0), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close((numbers * marks).sum(0, keepdim=True).T, target)


def test_adding_baseline_is_the_loss_of_the_best_constant():
    task = AddingProblem(length=2, batch_size=200_000, dtype=torch.float64)
    _, target = task[0]
    losses = {c: float(task.loss(torch.full_like(target, c), target)) for c in (0.9, 1.0, 1.1)}
    assert losses[1.0] == pytest.approx(task.baseline, rel=0.01)
    assert losses[1.0] < min(losses[0.9], losses[1.1])


def test_adding_metric_is_the_share_within_the_tolerance():
    task = AddingProblem(length=4, batch_size=4)
    target = torch.tensor([[0.5], [1.0], [1.5], [0.7]])
    output = target + torch.tensor([[0.0], [0.039], [-0.039], [0.041]])
    assert float(task.metrics(output, target)["within 0.04"]) == 0.75


def test_digits_epoch_is_a_permutation_of_the_training_pictures():
    task = PixelDigits(batch_size=479, seed=5)  # 3 · 479 = 1437: whole epochs
    epochs = [torch.cat([task[3 * e + n][0][..., 0].T for n in range(3)]) for e in range(2)]
    rows = [sorted(map(tuple, epoch.tolist())) for epoch in epochs]
    assert rows[0] == rows[1]
    assert not torch.equal(epochs[0], epochs[1])
    tested = {tuple(row) for row in task.held_out()[0][0][..., 0].T.tolist()}
    assert tested.isdisjoint(rows[0])


def test_digits_permutation_is_one_and_fixed():
    plain = PixelDigits(batch_size=1437, seed=2)
    (pixels, digits), (tested, _) = plain[0], plain.held_out()[0]
    orders = []
    for seed in (2, 9):
        permuted = PixelDigits(permuted=True, batch_size=1437, seed=seed)
        (shuffled, same_digits), (shuffled_tested, _) = permuted[0], permuted.held_out()[0]
        # Where each pixel went, by the test pictures; in them a few more pixels are always 0.
        orders.append(
            [next(j for j in range(64) if torch.equal(tested[j], row)) for row in shuffled_tested]
        )
        if seed == plain.seed:
            assert torch.equal(digits, same_digits)
            assert (pixels[orders[0]] - shuffled).abs().sum() < 1e-3 * pixels.sum()
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


def test_digits_pixels_and_baseline():
    task = PixelDigits(batch_size=1437)
    input, target = task[0]
    assert float(input.min()) == 0
    assert float(input.max()) == 1
    assert task.baseline == math.log(10)
    uniform = torch.zeros(1437, 10)
    assert float(task.loss(uniform, target)) == pytest.approx(task.baseline)
    # The best that can be said without looking, the frequencies of the classes, is no better.
    frequencies = torch.bincount(target, minlength=10).double() / 1437
    best = cross_entropy(frequencies.log().expand(1437, -1), target)
    assert task.baseline - 1e-3 < float(best) < task.baseline
    assert isinstance(task, HeldOut)
    assert task.held_out()[0][1].shape == (360,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CopyingMemory(length=0), "length must be at least 1, got 0"),
        (lambda: CopyingMemory(letters=0), "letters must be at least 1"),
        (lambda: CopyingMemory(seed=-1), "seed must be at least 0"),
        (lambda: AddingProblem(length=1), "length must be at least 2, got 1"),
        (lambda: AddingProblem(batch_size=0), "batch_size must be at least 1"),
        (lambda: PixelDigits(batch_size=1438), "at most 1437"),
    ],
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_dtype():
    assert CopyingMemory(dtype=torch.float64)[0][0].dtype == torch.float64
    assert PixelDigits(dtype=torch.float64)[0][0].dtype == torch.float64
    assert {t.dtype for t in AddingProblem(dtype=torch.float64)[0]} == {torch.float64}
