"""The recurrence against its reference loop, and modReLU."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from givens.rnn.modrelu import ModReLU, modrelu
from givens.rnn.recurrence import (
    NONLINEARITIES,
    recurrence,
    recurrence_,
    recurrence_reference,
)

NAMES = ("input", "weight", "hx", "bias")
BIAS_RANGES = {"negative": (-0.6, -0.1), "positive": (0.1, 0.6), "mixed": (-0.5, 0.5)}


def make(steps, batch, d, nonlinearity, *, seed=0, bias="mixed", dtype=torch.float64):
    """Arguments of the recurrence, with a recurrent matrix of norm 1."""
    g = torch.Generator().manual_seed(seed)
    low, high = BIAS_RANGES[bias]
    values = {
        "input": torch.randn(steps, batch, d, dtype=torch.float64, generator=g),
        "weight": torch.randn(d, d, dtype=torch.float64, generator=g),
        "hx": torch.randn(batch, d, dtype=torch.float64, generator=g),
        "bias": torch.empty(d, dtype=torch.float64).uniform_(low, high, generator=g),
    }
    values["weight"] /= torch.linalg.matrix_norm(values["weight"], 2)
    values = {name: value.to(dtype) for name, value in values.items()}
    if nonlinearity != "modrelu":
        values["bias"] = None
    return values | {"nonlinearity": nonlinearity}


def leaves(arguments, names=NAMES):
    """The same arguments as fresh leaves, of which those in `names` require a gradient."""
    return {
        name: value.detach().requires_grad_(name in names)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in arguments.items()
    }


def value_and_gradients(function, arguments, names=NAMES):
    """The output, and the gradients of a nonlinear function of it, those that exist."""
    arguments = leaves(arguments, names)
    output = function(**arguments)
    weights = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view(output.shape)
    loss = (weights * torch.sin(output)).sum()
    wanted = [name for name in names if arguments[name] is not None]
    gradients = torch.autograd.grad(loss, [arguments[name] for name in wanted])
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


def distance_to_kink(arguments):
    """How far the pre-activations stay from the points where φ is not smooth."""
    states = recurrence_reference(**arguments)
    before = torch.cat([arguments["hx"][None], states[:-1]])
    z = (arguments["input"] + before @ arguments["weight"].t()).abs()
    if arguments["nonlinearity"] == "modrelu":
        return min(z.min(), (z + arguments["bias"]).abs().min())
    return z.min() if arguments["nonlinearity"] == "relu" else torch.inf


def assert_close(actual, expected, tolerance):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item()) if value.numel() else 1.0
        torch.testing.assert_close(
            actual[name].to(value.dtype),
            value,
            rtol=0,
            atol=tolerance * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


sizes = {
    "steps": st.integers(1, 7),
    "batch": st.integers(1, 4),
    "d": st.integers(1, 9),
    "nonlinearity": st.sampled_from(NONLINEARITIES),
    "bias": st.sampled_from(list(BIAS_RANGES)),
    "seed": st.integers(0, 2**31),
}


def noncontiguous(tensor):
    """The same values with every stride but the last doubled, and the first two axes swapped."""
    if tensor.dim() == 1:
        return torch.stack([tensor, -tensor], 1)[:, 0]
    return torch.stack([tensor.transpose(0, 1), -tensor.transpose(0, 1)], -1)[..., 0].transpose(
        0, 1
    )


class TestAgainstTheReference:
    @given(**sizes, strided=st.booleans(), silent=st.booleans())
    def test_values_and_gradients(self, strided, silent, **kwargs):
        arguments = make(**kwargs)
        if silent:
            # Where nothing enters the state is exactly 0, the jump of modReLU with b > 0.
            arguments["input"][:, ::2] = 0
            arguments["hx"][::2] = 0
        given = (
            {
                name: noncontiguous(value) if isinstance(value, torch.Tensor) else value
                for name, value in arguments.items()
            }
            if strided
            else arguments
        )
        assert_close(
            value_and_gradients(recurrence, given),
            value_and_gradients(recurrence_reference, arguments),
            1e-11,
        )

    @given(**sizes)
    def test_float32(self, **kwargs):
        arguments = make(**kwargs)
        assume(distance_to_kink(arguments) > 1e-4)
        single = {
            name: value.float() if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        actual = value_and_gradients(recurrence, single)
        assert all(value.dtype == torch.float32 for value in actual.values())
        assert_close(actual, value_and_gradients(recurrence_reference, arguments), 1e-4)

    @pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
    def test_every_choice_of_gradients(self, nonlinearity):
        arguments = make(4, 3, 5, nonlinearity)
        complete = value_and_gradients(recurrence, arguments)
        available = [name for name in NAMES if arguments[name] is not None]
        for chosen in product([False, True], repeat=len(available)):
            names = [name for name, is_chosen in zip(available, chosen, strict=True) if is_chosen]
            if names:
                actual = value_and_gradients(recurrence, arguments, names)
                assert_close(actual, {name: complete[name] for name in ["output", *names]}, 1e-14)

    def test_expanded_gradient(self):
        results = []
        for function in (recurrence, recurrence_reference):
            arguments = leaves(make(3, 2, 4, "tanh"))
            function(**arguments).sum().backward()
            results.append({name: arguments[name].grad for name in ("input", "weight", "hx")})
        assert_close(*results, 1e-13)

    def test_functional_gradient(self):
        arguments = make(3, 2, 4, "modrelu")

        def loss(weight):
            return torch.sin(recurrence(**arguments | {"weight": weight})).sum()

        weight = arguments["weight"].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(weight), weight)
        torch.testing.assert_close(torch.func.grad(loss)(arguments["weight"]), expected)


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
@pytest.mark.parametrize("bias", BIAS_RANGES)
def test_gradcheck(nonlinearity, bias):
    arguments = make(4, 2, 3, nonlinearity, seed=3, bias=bias)
    assert distance_to_kink(arguments) > 1e-4
    arguments = leaves(arguments)
    assert gradcheck(recurrence, tuple(arguments.values()))


class TestLaws:
    @given(**sizes)
    def test_rows_of_a_batch_are_independent(self, **kwargs):
        arguments = make(**kwargs)
        together = recurrence(**arguments)
        for row in range(together.shape[1]):
            alone = recurrence(
                **arguments
                | {
                    "input": arguments["input"][:, row : row + 1],
                    "hx": arguments["hx"][row : row + 1],
                }
            )
            torch.testing.assert_close(together[:, row], alone[:, 0], rtol=0, atol=1e-12)

    @given(**sizes, cut=st.integers(1, 6))
    def test_a_sequence_can_be_cut(self, cut, **kwargs):
        arguments = make(**kwargs)
        whole = recurrence(**arguments)
        assume(cut < len(whole))
        first = recurrence(**arguments | {"input": arguments["input"][:cut]})
        second = recurrence(**arguments | {"input": arguments["input"][cut:], "hx": first[-1]})
        torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-12)

    def test_linear_recurrence_without_input_is_a_power(self):
        arguments = make(6, 3, 5, "identity")
        arguments["input"].zero_()
        power = torch.linalg.matrix_power(arguments["weight"], 6)
        torch.testing.assert_close(recurrence(**arguments)[-1], arguments["hx"] @ power.t())

    def test_empty_batch(self):
        actual = value_and_gradients(recurrence, make(3, 0, 4, "modrelu"))
        assert actual["output"].shape == (3, 0, 4)
        assert not actual["weight"].any()

    def test_input_is_left_alone(self):
        arguments = make(3, 2, 4, "modrelu")
        before = {name: arguments[name].clone() for name in NAMES}
        value_and_gradients(recurrence, arguments)
        assert all(torch.equal(arguments[name], before[name]) for name in NAMES)


class TestInPlace:
    def test_states_overwrite_the_input(self):
        arguments = make(3, 2, 4, "modrelu")
        expected = recurrence(**arguments)
        output = recurrence_(**arguments)
        assert output is arguments["input"]
        assert torch.equal(output, expected)

    def test_refuses_strided_input(self):
        arguments = make(3, 2, 4, "modrelu")
        arguments["input"] = arguments["input"][:1].expand(3, 2, 4)
        with pytest.raises(ValueError, match="call recurrence, which takes any"):
            recurrence_(**arguments)

    def test_refuses_a_leaf(self):
        with pytest.raises(RuntimeError, match="leaf"):
            recurrence_(**leaves(make(3, 2, 4, "relu")))

    @pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
    def test_saves_nothing_beside_the_states(self, nonlinearity):
        saved = []
        arguments = leaves(make(3, 2, 4, nonlinearity), ["weight", "hx"])
        arguments["input"].requires_grad_(False)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.append(x.data_ptr()) or x, lambda x: x
        ):
            output = recurrence_(**arguments)
        known = {t.data_ptr() for t in (output, arguments["weight"], arguments["hx"])}
        assert set(saved) == known

    def test_changed_states_are_noticed(self):
        output = recurrence(**leaves(make(3, 2, 4, "relu")))
        output.detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


class TestSecondDerivative:
    @pytest.mark.parametrize("loss", [torch.sum, lambda h: torch.sin(h).sum()])
    def test_is_refused(self, loss):
        arguments = leaves(make(3, 2, 4, "tanh"))
        output = recurrence(**arguments)
        (gradient,) = torch.autograd.grad(loss(output), arguments["weight"], create_graph=True)
        with pytest.raises(RuntimeError, match="recurrence_reference"):
            (gradient.square().sum() + output.sum()).backward()

    def test_first_derivative_with_a_graph(self):
        arguments = leaves(make(3, 2, 4, "tanh"))
        plain, graphed = (
            torch.autograd.grad(recurrence(**arguments).sum(), arguments["hx"], create_graph=graph)
            for graph in (False, True)
        )
        assert torch.equal(plain[0], graphed[0])

    def test_reference_has_one(self):
        arguments = leaves(make(2, 1, 3, "tanh"), ["hx"])
        (gradient,) = torch.autograd.grad(
            recurrence_reference(**arguments).sum(), arguments["hx"], create_graph=True
        )
        gradient.square().sum().backward()
        assert arguments["hx"].grad.abs().max() > 1e-3


ERRORS = {
    "nonlinearity": ({"nonlinearity": "gelu"}, ValueError, "'gelu'; choose one of modrelu, relu"),
    "no bias": ({"bias": None}, ValueError, "modReLU needs its bias"),
    "a bias too much": ({"nonlinearity": "relu"}, ValueError, "only modReLU has a bias"),
    "dimensions": ({"input": torch.zeros(3, 4)}, ValueError, r"shape \(T, B, d\).*got \(3, 4\)"),
    "no steps": ({"input": torch.zeros(0, 2, 4)}, ValueError, "at least one step"),
    "weight": ({"weight": torch.zeros(4, 5)}, ValueError, r"weight .*\(4, 4\).*got \(4, 5\)"),
    "hx": ({"hx": torch.zeros(4)}, ValueError, r"hx must have shape \(2, 4\).*got \(4,\)"),
    "bias": ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(4,\).*got \(5,\)"),
    "integers": ({"input": torch.zeros(3, 2, 4, dtype=torch.long)}, TypeError, "floating-point"),
    "dtype": ({"hx": torch.zeros(2, 4, dtype=torch.double)}, TypeError, "hx has dtype.*float64"),
    "device": ({"weight": torch.zeros(4, 4, device="meta")}, ValueError, "weight is on meta"),
}


@pytest.mark.parametrize("function", [recurrence, recurrence_, recurrence_reference])
@pytest.mark.parametrize("change", ERRORS)
def test_errors(function, change):
    replacement, error, message = ERRORS[change]
    arguments = make(3, 2, 4, "modrelu", dtype=torch.float32)
    before = arguments["input"].clone()
    with pytest.raises(error, match=message):
        function(**arguments | replacement)
    assert torch.equal(arguments["input"], before)


class TestModReLU:
    @given(bias=st.sampled_from(list(BIAS_RANGES)), seed=st.integers(0, 2**31))
    def test_is_odd_and_shifts_the_magnitude(self, bias, seed):
        arguments = make(5, 3, 4, "modrelu", bias=bias, seed=seed)
        z, b = arguments["input"], arguments["bias"]
        z[0, 0] = 0
        h = modrelu(z, b)
        assert torch.equal(modrelu(-z, b), -h)
        assert torch.equal(h.abs(), torch.where(z == 0, 0, torch.relu(z.abs() + b)))
        assert (h * z >= 0).all()

    def test_without_bias_is_the_identity(self):
        z = torch.randn(10, 4)
        assert torch.equal(modrelu(z, torch.zeros(4)), z)

    def test_nan_stays(self):
        nan = torch.full((1, 1, 2), torch.nan)
        assert modrelu(nan, torch.ones(2)).isnan().all()
        states = recurrence(nan, torch.eye(2), torch.zeros(1, 2), torch.ones(2))
        assert states.isnan().all()

    def test_module(self):
        module = ModReLU(2000, dtype=torch.float64)
        assert repr(module) == "ModReLU(2000)"
        z = torch.randn(3, 2000, dtype=torch.float64)
        assert torch.equal(module(z), modrelu(z, module.bias))
        drawn = module.bias.detach().clone()
        assert drawn.min() >= -0.01
        assert drawn.max() <= 0.01
        # The standard error of the mean is 0.0058/√2000 = 1.3e-4.
        assert drawn.mean().abs() < 6e-4
        assert drawn.std() == pytest.approx(0.01 / 3**0.5, rel=0.05)
        module.reset_parameters()
        assert not torch.equal(module.bias, drawn)

    def test_module_gradient(self):
        module = ModReLU(3, dtype=torch.float64)
        z = torch.tensor([[-1.0, 0.5, 2.0]], dtype=torch.float64, requires_grad=True)
        assert gradcheck(
            lambda z, b: torch.func.functional_call(module, {"bias": b}, z),
            (z, module.bias.detach().requires_grad_()),
        )
