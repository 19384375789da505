"""OrthogonalRNN: against torch.nn.RNN, and everything that a torch module is expected to do."""

import copy
import io
import pickle
import re

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck
from torch.nn.utils.rnn import pack_sequence

from givens.manifolds import OrthogonalGroup
from givens.rnn.initialization import INITIALIZATIONS, haar, henaff_cayley
from givens.rnn.layer import OrthogonalRNN
from givens.rnn.recurrence import NONLINEARITIES, recurrence_reference

DOUBLE = torch.float64


def make(*args, seed=0, randomize=True, **kwargs):
    """A layer in float64; unless told otherwise, with biases that matter."""
    torch.manual_seed(seed)
    layer = OrthogonalRNN(*args, **{"init": "haar", "dtype": DOUBLE} | kwargs)
    if randomize:
        for name, parameter in layer.named_parameters():
            if name.startswith("bias"):
                nn.init.uniform_(parameter, -0.4, 0.4)
    return layer


def values(layer):
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def orthogonality(layer):
    return max(
        (W.double().T @ W.double() - torch.eye(len(W))).abs().max().item()
        for name, W in values(layer).items()
        if name.startswith("weight_hh")
    )


class TestAgainstTorch:
    @given(
        nonlinearity=st.sampled_from(["relu", "tanh"]),
        num_layers=st.integers(1, 3),
        bias=st.booleans(),
        batch_first=st.booleans(),
        batched=st.booleans(),
        with_hx=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def test_same_outputs_and_gradients(self, batched, with_hx, seed, **kwargs):
        ours = make(3, 5, seed=seed, **kwargs)
        theirs = nn.RNN(3, 5, **kwargs, dtype=DOUBLE)
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if name.startswith("bias_hh"):
                    parameter.zero_()
                else:
                    parameter.copy_(ours.get_parameter(name))

        results = []
        input = torch.randn((4, 2, 3) if batched else (4, 3), dtype=DOUBLE)
        layers = kwargs["num_layers"]
        batch = 4 if kwargs["batch_first"] else 2
        hx = torch.randn((layers, batch, 5) if batched else (layers, 5), dtype=DOUBLE)
        for layer in (ours, theirs):
            x, h = input.clone().requires_grad_(), hx.clone().requires_grad_()
            output, h_n = layer(x, h) if with_hx else layer(x)
            weights = torch.linspace(-1, 2, output.numel(), dtype=DOUBLE).view(output.shape)
            (torch.sin(output).mul(weights).sum() + torch.cos(h_n).sum()).backward()
            gradients = {name: p.grad for name, p in layer.named_parameters()}
            results.append({"output": output, "h_n": h_n, "x": x.grad, "hx": h.grad} | gradients)

        for name, actual in results[0].items():
            expected = results[1][name]
            if name == "hx" and not with_hx:
                assert actual is None
                continue
            assert actual.shape == expected.shape, name
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)

    def test_same_parameter_names(self):
        ours = OrthogonalRNN(3, 5, 2, "tanh")
        names = [n for n, _ in nn.RNN(3, 5, 2).named_parameters() if not n.startswith("bias_hh")]
        assert [name for name, _ in ours.named_parameters()] == names


class TestForward:
    @pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
    def test_equation(self, nonlinearity):
        layer = make(3, 5, 1, nonlinearity)
        x = torch.randn(6, 2, 3, dtype=DOUBLE)
        u = x @ layer.weight_ih_l0.T
        if nonlinearity == "modrelu":
            expected = recurrence_reference(
                u, layer.weight_hh_l0, torch.zeros(2, 5, dtype=DOUBLE), layer.bias_modrelu_l0
            )
        else:
            expected = recurrence_reference(
                u + layer.bias_ih_l0,
                layer.weight_hh_l0,
                torch.zeros(2, 5, dtype=DOUBLE),
                nonlinearity=nonlinearity,
            )
        output, h_n = layer(x)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(h_n, expected[-1:])

    @pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
    def test_gradcheck(self, nonlinearity):
        layer = make(2, 3, 2, nonlinearity, seed=5)
        parameters = {name: value.requires_grad_() for name, value in values(layer).items()}
        x = torch.randn(3, 2, 2, dtype=DOUBLE, requires_grad=True)
        hx = torch.randn(2, 2, 3, dtype=DOUBLE, requires_grad=True)

        def function(x, hx, *tensors):
            replaced = dict(zip(parameters, tensors, strict=True))
            return torch.func.functional_call(layer, replaced, (x, hx))

        assert gradcheck(function, (x, hx, *parameters.values()))

    @pytest.mark.parametrize("num_layers", [1, 2])
    def test_a_sequence_can_be_cut(self, num_layers):
        layer = make(3, 5, num_layers)
        x = torch.randn(7, 2, 3, dtype=DOUBLE)
        whole, h_n = layer(x)
        first, state = layer(x[:3])
        second, state = layer(x[3:], state)
        torch.testing.assert_close(torch.cat([first, second]), whole)
        torch.testing.assert_close(state, h_n)

    def test_linear_network_keeps_norms(self):
        layer = make(3, 8, 1, "identity", bias=False)
        hx = torch.randn(1, 4, 8, dtype=DOUBLE)
        output, _ = layer(torch.zeros(500, 4, 3, dtype=DOUBLE), hx)
        norms = output.norm(dim=-1)
        torch.testing.assert_close(norms, hx.norm(dim=-1).expand_as(norms), rtol=1e-12, atol=0)

    def test_inputs_are_left_alone(self):
        layer = make(3, 5, 2)
        x, hx = torch.randn(4, 2, 3, dtype=DOUBLE), torch.randn(2, 2, 5, dtype=DOUBLE)
        before = x.clone(), hx.clone(), values(layer)
        layer(x, hx)[0].sum().backward()
        assert torch.equal(x, before[0])
        assert torch.equal(hx, before[1])
        assert_same(values(layer), before[2])

    @pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_modrelu_l0"])
    def test_frozen_parameters(self, frozen):
        layer, partly = make(3, 5), make(3, 5)
        partly.get_parameter(frozen).requires_grad_(False)
        x = torch.randn(4, 2, 3, dtype=DOUBLE)
        for each in (layer, partly):
            each(x)[0].square().sum().backward()
        for name, parameter in partly.named_parameters():
            if name == frozen:
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, layer.get_parameter(name).grad)

    def test_second_derivative_is_refused(self):
        layer = make(3, 5)
        x = torch.randn(4, 2, 3, dtype=DOUBLE, requires_grad=True)
        (gradient,) = torch.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiated once only"):
            gradient.square().sum().backward()

    def test_autocast(self):
        layer = make(3, 5, 2, dtype=torch.float32)
        x = torch.randn(4, 2, 3)
        expected, _ = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, _ = layer(x.bfloat16())
        assert output.dtype == torch.float32
        # Two digits: bfloat16 carries 8 bits of the input's product.
        torch.testing.assert_close(output, expected, rtol=0, atol=0.1)
        output.sum().backward()
        assert layer.weight_hh_l0.grad.dtype == torch.float32


class TestDropout:
    def test_acts_between_layers_in_training(self):
        layer = make(3, 5, 2, dropout=1.0)
        x = torch.randn(4, 2, 3, dtype=DOUBLE)
        upper = recurrence_reference(
            torch.zeros(4, 2, 5, dtype=DOUBLE),
            layer.weight_hh_l1,
            torch.ones(2, 5, dtype=DOUBLE),
            layer.bias_modrelu_l1,
        )
        output, h_n = layer(x, torch.ones(2, 2, 5, dtype=DOUBLE))
        torch.testing.assert_close(output, upper)
        # Neither what enters the first layer is dropped nor what leaves the last.
        undisturbed = make(3, 5, 2)(x, torch.ones(2, 2, 5, dtype=DOUBLE))[1]
        torch.testing.assert_close(h_n[0], undisturbed[0])

    def test_is_off_in_evaluation(self):
        layer, plain = make(3, 5, 2, dropout=0.5).eval(), make(3, 5, 2)
        x = torch.randn(4, 2, 3, dtype=DOUBLE)
        assert torch.equal(layer(x)[0], plain(x)[0])

    def test_warns_where_it_does_nothing(self):
        with pytest.warns(UserWarning, match="num_layers=1"):
            OrthogonalRNN(3, 5, dropout=0.5)


class TestParameters:
    @pytest.mark.parametrize("init", INITIALIZATIONS)
    def test_start(self, init):
        torch.manual_seed(0)
        layer = OrthogonalRNN(300, 64, 2, init=init)
        assert orthogonality(layer) < 2e-6
        assert layer.weight_ih_l0.shape == (64, 300)
        assert layer.weight_ih_l1.shape == (64, 64)
        assert layer.weight_ih_l0.std().item() == pytest.approx((2 / 300) ** 0.5, rel=0.03)
        assert layer.weight_ih_l1.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.06)
        assert 0 < layer.bias_modrelu_l0.abs().max() <= 0.01
        for k in range(2):
            weight = layer.get_parameter(f"weight_hh_l{k}")
            assert isinstance(weight, ManifoldParameter)
            assert isinstance(weight.manifold, OrthogonalGroup)
        if init != "identity":
            assert not torch.equal(layer.weight_hh_l0, layer.weight_hh_l1)

    def test_additive_bias_starts_at_zero(self):
        layer = OrthogonalRNN(3, 5, 1, "tanh")
        assert layer.bias_ih_l0.shape == (5,)
        assert not layer.bias_ih_l0.any()
        assert not hasattr(layer, "bias_modrelu_l0")

    def test_manual_seed(self):
        one, same, other = (make(3, 6, 2, seed=s, randomize=False) for s in (0, 0, 1))
        assert_same(values(one), values(same))
        assert not torch.equal(one.weight_hh_l0, other.weight_hh_l0)

    def test_init_by_name_and_by_function(self):
        by_name = make(3, 6, init="henaff-cayley", randomize=False)
        by_function = make(3, 6, init=henaff_cayley, randomize=False)
        assert_same(values(by_name), values(by_function))

    def test_reset_in_place(self):
        layer = make(3, 6, 2, "tanh")
        before, parameters = values(layer), dict(layer.named_parameters())
        layer.reset_parameters()
        for name, parameter in layer.named_parameters():
            assert parameter is parameters[name]
            assert not torch.equal(parameter, before[name])
        assert orthogonality(layer) < 1e-14

    def test_failing_reset_changes_nothing(self):
        layer = make(3, 6, 2)
        before = values(layer)
        layer.init = lambda d, **kwargs: torch.ones(d, d, dtype=DOUBLE)
        with pytest.raises(ValueError, match="must return an orthogonal matrix: max"):
            layer.reset_parameters()
        assert_same(values(layer), before)

    def test_repr(self):
        assert repr(OrthogonalRNN(3, 6)) == "OrthogonalRNN(3, 6)"
        assert repr(OrthogonalRNN(3, 6, 2, "relu", batch_first=True, init="haar")) == (
            "OrthogonalRNN(3, 6, num_layers=2, nonlinearity='relu', batch_first=True, init='haar')"
        )


class TestSavingAndMoving:
    @pytest.mark.parametrize(
        "clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
    )
    def test_copies(self, clone):
        layer = make(3, 6, 2)
        other = clone(layer)
        assert_same(values(other), values(layer))
        assert isinstance(other.weight_hh_l1, ManifoldParameter)
        other.reset_parameters()
        assert not torch.equal(other.weight_hh_l0, layer.weight_hh_l0)
        other.load_state_dict(layer.state_dict(), assign=True)
        assert_same(values(other), values(layer))
        assert isinstance(other.weight_hh_l1, ManifoldParameter)

    def test_state_dict_loads_safely(self):
        layer, other = make(3, 6, 2), make(3, 6, 2, seed=1)
        parameter = other.weight_hh_l0
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert_same(values(other), values(layer))
        assert other.weight_hh_l0 is parameter

    def test_assign_keeps_the_matrices_on_the_group(self):
        layer, other = make(3, 6, 2), make(3, 6, 2, seed=1)
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        other.load_state_dict(state, assign=True)
        assert_same(values(other), values(layer))
        for weight in (other.weight_hh_l0, other.weight_hh_l1):
            assert isinstance(weight, ManifoldParameter)
            assert isinstance(weight.manifold, OrthogonalGroup)

    def test_double_and_back(self):
        layer = make(3, 6, dtype=torch.float32)
        for dtype in (DOUBLE, torch.float32):
            layer.to(dtype)
            assert isinstance(layer.weight_hh_l0, ManifoldParameter)
            assert isinstance(layer.weight_hh_l0.manifold, OrthogonalGroup)
            output, _ = layer(torch.randn(4, 2, 3, dtype=dtype))
            assert output.dtype == dtype
            output.sum().backward()
            assert layer.weight_hh_l0.grad.dtype == dtype

    @pytest.mark.parametrize("action", ["forward", "reset_parameters"])
    def test_plain_parameter_is_refused(self, action):
        layer = make(3, 6, 2)
        layer.weight_hh_l1 = nn.Parameter(layer.weight_hh_l1.detach())
        before = values(layer)
        arguments = [torch.randn(4, 2, 3, dtype=DOUBLE)] if action == "forward" else []
        with pytest.raises(TypeError, match="weight_hh_l1 has been replaced by a plain Parameter"):
            getattr(layer, action)(*arguments)
        assert_same(values(layer), before)


BAD_ARGUMENTS = {
    "input_size": ({"input_size": 0}, ValueError, "input_size must be at least 1, got 0"),
    "float": ({"input_size": 2.0}, TypeError, r"input_size must be an int, got 2\.0"),
    "hidden_size": ({"hidden_size": 1}, ValueError, "hidden_size must be at least 2, got 1"),
    "num_layers": ({"num_layers": 0}, ValueError, "num_layers must be at least 1, got 0"),
    "flag": ({"batch_first": 1}, TypeError, "batch_first must be a bool, got 1"),
    "nonlinearity": ({"nonlinearity": "gelu"}, ValueError, "'gelu'; choose one of modrelu"),
    "bias": ({"bias": False}, ValueError, "modReLU without its bias is the identity"),
    "bidirectional": ({"bidirectional": True}, NotImplementedError, "reversed sequence"),
    "dropout": ({"dropout": 1.5}, ValueError, r"between 0 and 1, got 1\.5"),
    "dropout nan": ({"dropout": float("nan")}, ValueError, "between 0 and 1, got nan"),
    "dtype": ({"dtype": torch.bfloat16}, TypeError, r"float32 or torch\.float64, got .*bfloat16"),
    "init name": ({"init": "henaff"}, ValueError, "'henaff'; choose one of henaff-cayley, "),
    "init type": ({"init": 3}, TypeError, "name or a function, got 3"),
    "init shape": ({"init": lambda d, **_: haar(d + 1)}, ValueError, r"\(6, 6\), got \(7, 7\)"),
    "proj_size": ({"proj_size": 2}, TypeError, "proj_size"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_constructor_errors(case):
    replacement, error, message = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        OrthogonalRNN(**{"input_size": 3, "hidden_size": 6} | replacement)


BAD_INPUTS = {
    "features": ([torch.zeros(4, 2, 5)], ValueError, "(L, N, 3), or (L, 3) for one sequence, got"),
    "dimensions": ([torch.zeros(3)], ValueError, "got (3,)"),
    "no steps": ([torch.zeros(0, 2, 3)], ValueError, "at least one step"),
    "dtype": ([torch.zeros(4, 2, 3).double()], TypeError, "convert the input with .to(torch.float"),
    "hx shape": (
        [torch.zeros(4, 2, 3), torch.zeros(1, 3, 6)],
        ValueError,
        "hx must have shape (1, 2, 6) to go with an input that is batched, got (1, 3, 6)",
    ),
    "hx batched": (
        [torch.zeros(4, 3), torch.zeros(1, 2, 6)],
        ValueError,
        "hx must have shape (1, 6) to go with an input that is not batched, got (1, 2, 6)",
    ),
    "hx dtype": ([torch.zeros(4, 2, 3), torch.zeros(1, 2, 6).double()], TypeError, "hx has dtype"),
    "packed": ([pack_sequence([torch.zeros(4, 3)])], TypeError, "pass the padded tensor"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_input_errors(case):
    arguments, error, message = BAD_INPUTS[case]
    layer = OrthogonalRNN(3, 6)
    with pytest.raises(error, match=re.escape(message)):
        layer(*arguments)


def test_batch_first_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"\(N, L, 3\)"):
        OrthogonalRNN(3, 6, batch_first=True)(torch.zeros(4, 2, 5))
