"""The recurrence against its reference loop, and modReLU."""

from itertools import product

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from givens.rnn.modrelu import ModReLU, modrelu
from givens.rnn.recurrence import (
    COMPLEX_NONLINEARITIES,
    NONLINEARITIES,
    recurrence,
    recurrence_,
    recurrence_reference,
)

NAMES = ("input", "weight", "hx", "bias")
# What the recurrence computes: a nonlinearity, of real or of complex numbers.
KINDS = (*NONLINEARITIES, *(f"complex {name}" for name in COMPLEX_NONLINEARITIES))
BIAS_RANGES = {"negative": (-0.6, -0.1), "positive": (0.1, 0.6), "mixed": (-0.5, 0.5)}


def make(steps, batch, d, kind, *, seed=0, bias="mixed", dtype=torch.float64):
    """Arguments of the recurrence, with a recurrent matrix of norm 1."""
    *is_complex, nonlinearity = kind.split()
    g = torch.Generator().manual_seed(seed)
    low, high = BIAS_RANGES[bias]
    double = torch.complex128 if is_complex else torch.float64
    values = {
        "input": torch.randn(steps, batch, d, dtype=double, generator=g),
        "weight": torch.randn(d, d, dtype=double, generator=g),
        "hx": torch.randn(batch, d, dtype=double, generator=g),
        "bias": torch.empty(d, dtype=torch.float64).uniform_(low, high, generator=g),
    }
    values["weight"] /= torch.linalg.matrix_norm(values["weight"], 2)
    values = {name: in_precision(value, dtype) for name, value in values.items()}
    if nonlinearity != "modrelu":
        values["bias"] = None
    return values | {"nonlinearity": nonlinearity}


def in_precision(tensor, dtype):
    """The tensor in the precision of a real type; a complex one stays complex."""
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


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
    if output.is_complex():
        weights = weights * (1 - 0.7j)
    loss = torch.real(weights * torch.sin(output)).sum()
    wanted = [name for name in names if arguments[name] is not None]
    gradients = torch.autograd.grad(loss, [arguments[name] for name in wanted])
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


def distance_to_kink(arguments):
    """How far the pre-activations stay from the points where φ is not smooth."""
    states = recurrence_reference(**arguments)
    before = torch.cat([arguments["hx"][None], states[:-1]])
    z = (arguments["input"] + before @ arguments["weight"].t()).abs()
    if arguments["nonlinearity"] == "modrelu":
        # The complex one is not even bounded in its derivative near 0.
        near_zero = z.min() / 200 if arguments["input"].is_complex() else z.min()
        return min(near_zero, (z + arguments["bias"]).abs().min())
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
    "kind": st.sampled_from(KINDS),
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
            name: in_precision(value, torch.float32) if isinstance(value, torch.Tensor) else value
            for name, value in arguments.items()
        }
        actual = value_and_gradients(recurrence, single)
        assert all(value.dtype.to_real() == torch.float32 for value in actual.values())
        assert_close(actual, value_and_gradients(recurrence_reference, arguments), 1e-4)

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_choice_of_gradients(self, kind):
        arguments = make(4, 3, 5, kind)
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

    @pytest.mark.parametrize("kind", ["modrelu", "complex modrelu"])
    def test_functional_gradient(self, kind):
        arguments = make(3, 2, 4, kind)

        def loss(weight):
            return torch.sin(recurrence(**arguments | {"weight": weight})).sum().real

        weight = arguments["weight"].clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(weight), weight)
        torch.testing.assert_close(torch.func.grad(loss)(arguments["weight"]), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", BIAS_RANGES)
def test_gradcheck(kind, bias):
    arguments = make(4, 2, 3, kind, seed=3, bias=bias)
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

    @pytest.mark.parametrize("kind", ["identity", "complex identity"])
    def test_linear_recurrence_without_input_is_a_power(self, kind):
        arguments = make(6, 3, 5, kind)
        arguments["input"].zero_()
        power = torch.linalg.matrix_power(arguments["weight"], 6)
        torch.testing.assert_close(recurrence(**arguments)[-1], arguments["hx"] @ power.t())

    @given(seed=st.integers(0, 2**31), bias=st.sampled_from(list(BIAS_RANGES)))
    def test_complex_modrelu_commutes_with_a_phase(self, seed, bias):
        arguments = make(5, 2, 4, "complex modrelu", seed=seed, bias=bias)
        phase = torch.polar(torch.tensor(1.0).double(), torch.tensor(seed).double())
        turned = {name: phase * arguments[name] for name in ("input", "hx")}
        torch.testing.assert_close(
            recurrence(**arguments | turned), phase * recurrence(**arguments), rtol=0, atol=1e-11
        )

    @given(seed=st.integers(0, 2**31), bias=st.sampled_from(list(BIAS_RANGES)))
    def test_real_numbers_are_complex_numbers(self, seed, bias):
        arguments = make(5, 2, 4, "modrelu", seed=seed, bias=bias)
        as_complex = {name: arguments[name].to(torch.complex128) for name in NAMES[:3]}
        actual = value_and_gradients(recurrence, arguments | as_complex)
        assert not actual["output"].imag.any()
        real_parts = {name: torch.real(value) for name, value in actual.items()}
        assert_close(real_parts, value_and_gradients(recurrence, arguments), 1e-11)

    @pytest.mark.parametrize("kind", ["modrelu", "complex modrelu"])
    def test_empty_batch(self, kind):
        actual = value_and_gradients(recurrence, make(3, 0, 4, kind))
        assert actual["output"].shape == (3, 0, 4)
        assert not actual["weight"].any()

    def test_input_is_left_alone(self):
        arguments = make(3, 2, 4, "modrelu")
        before = {name: arguments[name].clone() for name in NAMES}
        value_and_gradients(recurrence, arguments)
        assert all(torch.equal(arguments[name], before[name]) for name in NAMES)


class TestInPlace:
    @pytest.mark.parametrize("kind", ["modrelu", "complex modrelu"])
    def test_states_overwrite_the_input(self, kind):
        arguments = make(3, 2, 4, kind)
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

    @pytest.mark.parametrize("kind", KINDS)
    def test_saves_nothing_beside_the_states(self, kind):
        saved = []
        arguments = leaves(make(3, 2, 4, kind), ["weight", "hx"])
        arguments["input"].requires_grad_(False)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.append(x.data_ptr()) or x, lambda x: x
        ):
            output = recurrence_(**arguments)
        known = {t.data_ptr() for t in (output, arguments["weight"], arguments["hx"])}
        if kind == "complex modrelu":
            known.add(arguments["bias"].data_ptr())
        assert set(saved) == known

    def test_changed_states_are_noticed(self):
        output = recurrence(**leaves(make(3, 2, 4, "relu")))
        output.detach().add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


class TestComplexModReLUNearItsKinks:
    """In complex64, where the derivative is read off an h that is small or hides a small z."""

    @staticmethod
    def gradients(magnitudes, b, function, dtype):
        """Gradients of a random linear function of modReLU(z), for z of these magnitudes.

        The third result is the size of the incoming gradient.
        """
        n = len(magnitudes)
        g = torch.Generator().manual_seed(0)
        z = torch.polar(magnitudes, torch.randn(n, dtype=torch.float64, generator=g))
        z = z.to(torch.complex64).to(dtype)[None, None].requires_grad_()
        bias = torch.full((n,), b).to(dtype.to_real()).requires_grad_()
        nothing = torch.zeros(1, n, dtype=dtype)
        h = function(z, nothing.t() @ nothing, nothing, bias)
        along = torch.randn(n, dtype=torch.complex128, generator=g)
        return *torch.autograd.grad(h, (z, bias), along.to(dtype).expand(h.shape)), along.abs()

    @pytest.mark.parametrize("b", [-0.5, -0.01, 0.01, 0.5])
    @pytest.mark.parametrize("distance", [1e-6, 1e-4, 1e-2, 1])
    def test_against_double_precision(self, b, distance):
        r = torch.linspace(0.5, 1.5, 500, dtype=torch.float64) * distance + max(0, -b)
        actual = self.gradients(r, b, recurrence, torch.complex64)
        expected = self.gradients(r, b, recurrence_reference, torch.complex128)
        # The factor k = |h|/|z| has the relative error εk where b > 0; nothing is lost where b < 0.
        stretch = ((r + b) / r).clamp_min(1)
        error = (actual[0] - expected[0]).abs() / expected[2]
        assert (error / stretch**2).max() < 4e-7
        torch.testing.assert_close(actual[1].double(), expected[1], rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("b", [0.0, 0.01, 3.0])
    def test_is_finite_where_z_is_lost(self, b):
        r = torch.tensor([0, 1e-45, 3e-38, 1e-30, 1e-12, 1e-9], dtype=torch.float64)
        actual = self.gradients(r, b, recurrence, torch.complex64)
        assert (actual[0].abs() <= actual[2] / torch.finfo(torch.float32).eps * 1.01).all()
        assert not actual[0][0, 0, 0].any()
        assert actual[1][0] == 0
        if b == 0:  # the identity
            expected = self.gradients(r, b, recurrence, torch.complex128)
            torch.testing.assert_close(
                actual[0][0, 0, 2:].to(torch.complex128), expected[0][0, 0, 2:]
            )


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


COMPLEX_ERRORS = {
    "nonlinearity": ({"nonlinearity": "gelu"}, ValueError, "'gelu'; choose one of modrelu, ident"),
    "relu": (
        {"nonlinearity": "relu"},
        ValueError,
        r"complex states \(no complex number is greater",
    ),
    "tanh": (
        {"nonlinearity": "tanh"},
        ValueError,
        r"complex states \(it has poles.*; choose one of",
    ),
    "real hx": ({"hx": torch.zeros(2, 4)}, TypeError, "hx has dtype torch.float32 but input has"),
    "bias": (
        {"bias": torch.zeros(4, dtype=torch.complex64)},
        TypeError,
        r"bias has dtype torch\.complex64 .* which a torch\.float32 bias goes with",
    ),
}


@pytest.mark.parametrize("function", [recurrence, recurrence_, recurrence_reference])
@pytest.mark.parametrize("change", COMPLEX_ERRORS)
def test_complex_errors(function, change):
    replacement, error, message = COMPLEX_ERRORS[change]
    arguments = make(3, 2, 4, "complex modrelu", dtype=torch.float32)
    before = arguments["input"].clone()
    with pytest.raises(error, match=message):
        function(**arguments | replacement)
    assert torch.equal(arguments["input"], before)


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

    @given(bias=st.sampled_from(list(BIAS_RANGES)), seed=st.integers(0, 2**31))
    def test_keeps_the_phase_of_complex_numbers(self, bias, seed):
        arguments = make(5, 3, 4, "complex modrelu", bias=bias, seed=seed)
        z, b = arguments["input"], arguments["bias"]
        z[0, 0] = 0
        h = modrelu(z, b)
        magnitude = torch.where(z == 0, 0, torch.relu(z.abs() + b))
        torch.testing.assert_close(h.abs(), magnitude, rtol=1e-14, atol=0)
        torch.testing.assert_close(h * z.conj(), (magnitude * z.abs()).to(h.dtype))

    def test_without_bias_is_the_identity(self):
        z = torch.randn(10, 4)
        assert torch.equal(modrelu(z, torch.zeros(4)), z)
        z = torch.randn(10, 4, dtype=torch.complex64)
        torch.testing.assert_close(modrelu(z, torch.zeros(4)), z)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
    @pytest.mark.parametrize("function", ["modrelu", "recurrence"])
    def test_derivatives_at_zero_are_zero(self, dtype, function):
        b = torch.tensor([-0.5, 0.0, 0.5, -0.0] * 4, dtype=torch.float64, requires_grad=True)
        if dtype.is_complex:
            zeros = torch.tensor([0.0] * 8 + [-0.0] * 8, dtype=torch.float64)
            z = torch.complex(
                zeros, torch.tensor([0.0, 0, 0, 0, -0.0, -0.0, -0.0, -0.0] * 2).double()
            )
        else:
            z = torch.tensor([0.0] * 8 + [-0.0] * 8, dtype=dtype)
        z.requires_grad_()
        if function == "modrelu":
            h = modrelu(z, b)
        else:
            weight, hx = torch.zeros(16, 16, dtype=dtype), torch.zeros(1, 16, dtype=dtype)
            h = recurrence(z[None, None], weight, hx, b)
        assert not h.any()
        loss = torch.view_as_real(h).sum() if dtype.is_complex else h.sum()
        first = torch.autograd.grad(loss, (z, b), create_graph=function == "modrelu")
        assert not any(gradient.any() for gradient in first)
        if function == "modrelu":
            second = torch.autograd.grad(
                sum(torch.real(gradient).sum() for gradient in first), (z, b)
            )
            assert not any(gradient.any() for gradient in second)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
    def test_nan_stays(self, dtype):
        nan = torch.full((1, 1, 2), torch.nan, dtype=dtype)
        assert modrelu(nan, torch.ones(2)).isnan().all()
        nothing = torch.zeros(2, 2, dtype=dtype)
        states = recurrence(nan, nothing, nothing[:1], torch.ones(2))
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
