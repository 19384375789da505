"""UnitaryRNN: against a slow loop, OrthogonalRNN, and everything that a torch module should do."""

import copy
import io
import itertools
import math
import pickle
import re

import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

from givens.manifolds import UnitaryGroup
from givens.optim import SRCD, SRGD, Block, Cyclic, GaussSouthwell, Uniform
from givens.rnn import OrthogonalRNN, SequenceModel, UnitaryRNN
from givens.rnn.initialization import UNITARY_INITIALIZATIONS, haar, phases
from givens.rnn.recurrence import COMPLEX_NONLINEARITIES
from givens.rnn.tasks import CopyingMemory

DOUBLE = torch.complex128


def make(*args, seed=0, randomize=True, **kwargs):
    """A layer in complex128; unless told otherwise, with biases that matter."""
    torch.manual_seed(seed)
    layer = UnitaryRNN(*args, **{"init": "haar", "dtype": DOUBLE} | kwargs)
    if randomize:
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if name.startswith("bias"):
                    parameter.copy_(0.3 * torch.randn_like(parameter))
    return layer


def values(layer):
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def unitarity(layer):
    return max(
        (W.to(DOUBLE).mH @ W.to(DOUBLE) - torch.eye(len(W))).abs().max().item()
        for name, W in values(layer).items()
        if "weight_hh" in name
    )


def slow_loop(layer, x, hx):
    """The definition, one number at a time: x (steps, batch, features), hx (layers, batch, d)."""
    states = [list(h) for h in hx]
    outputs = []
    for x_t in x:
        row = []
        for n in range(x.shape[1]):
            below = x_t[n]
            for k in range(layer.num_layers):
                W_ih, W_hh = (layer.get_parameter(f"weight_{w}_l{k}") for w in ("ih", "hh"))
                entries = []
                for i in range(layer.hidden_size):
                    z = sum(W_ih[i, j] * below[j] for j in range(len(below)))
                    z = z + sum(W_hh[i, j] * states[k][n][j] for j in range(layer.hidden_size))
                    if layer.nonlinearity == "modrelu":
                        r = (z.real**2 + z.imag**2).sqrt()
                        shifted = r + layer.get_parameter(f"bias_modrelu_l{k}")[i]
                        z = z / r * shifted if shifted > 0 else 0 * z
                    elif layer.bias:
                        z = z + layer.get_parameter(f"bias_ih_l{k}")[i]
                    entries.append(z)
                below = states[k][n] = torch.stack(entries)
            row.append(below)
        outputs.append(torch.stack(row))
    return torch.stack(outputs), torch.stack([torch.stack(list(h)) for h in states])


class TestForward:
    @given(
        nonlinearity=st.sampled_from(COMPLEX_NONLINEARITIES),
        num_layers=st.integers(1, 2),
        batch_first=st.booleans(),
        batched=st.booleans(),
        with_hx=st.booleans(),
        is_complex=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    def test_slow_loop(self, batched, with_hx, is_complex, seed, **kwargs):
        layer = make(2, 3, seed=seed, **kwargs)
        x = torch.randn(3, 2 if batched else 1, 2, dtype=DOUBLE if is_complex else torch.float64)
        hx = torch.randn(layer.num_layers, x.shape[1], 3, dtype=DOUBLE)
        results = []
        for slow in (False, True):
            leaves = [x.clone().requires_grad_(), hx.clone().requires_grad_()]
            u, h = leaves
            if slow:
                output, h_n = slow_loop(layer, u, h if with_hx else torch.zeros_like(h))
            else:
                given_h = h if batched else h[:, 0]
                given_u = u if batched else u[:, 0]
                first = batched and layer.batch_first
                output, h_n = layer(
                    given_u.transpose(0, 1) if first else given_u, *([given_h] if with_hx else [])
                )
                output = output.transpose(0, 1) if first else output
                output, h_n = (output, h_n) if batched else (output.unsqueeze(1), h_n.unsqueeze(1))
            weights = torch.linspace(-1, 2, output.numel()).view(output.shape) * (1 - 0.5j)
            loss = (weights * torch.sin(output)).real.sum() + torch.cos(h_n).real.sum()
            wanted = [*leaves[: 1 + with_hx], *layer.parameters()]
            results.append([output, h_n, *torch.autograd.grad(loss, wanted)])
        for actual, expected in zip(*results, strict=True):
            assert actual.shape == expected.shape
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("nonlinearity", COMPLEX_NONLINEARITIES)
    @pytest.mark.parametrize("dtype", [torch.float64, DOUBLE])
    def test_gradcheck(self, nonlinearity, dtype):
        layer = make(2, 3, 2, nonlinearity, seed=5)
        parameters = {name: value.requires_grad_() for name, value in values(layer).items()}
        x = torch.randn(3, 2, 2, dtype=dtype, requires_grad=True)
        hx = torch.randn(2, 2, 3, dtype=DOUBLE, requires_grad=True)

        def function(x, hx, *tensors):
            replaced = dict(zip(parameters, tensors, strict=True))
            return torch.func.functional_call(layer, replaced, (x, hx))

        assert gradcheck(function, (x, hx, *parameters.values()))

    @pytest.mark.parametrize("nonlinearity", COMPLEX_NONLINEARITIES)
    def test_real_numbers_make_it_an_orthogonal_rnn(self, nonlinearity):
        real = OrthogonalRNN(3, 5, 2, nonlinearity, dtype=torch.float64)
        layer = make(3, 5, 2, nonlinearity)
        with torch.no_grad():
            for name, parameter in real.named_parameters():
                layer.get_parameter(name).copy_(parameter)
        x = torch.randn(6, 2, 3, dtype=torch.float64)
        for actual, expected in zip(layer(x), real(x), strict=True):
            torch.testing.assert_close(actual.real, expected)
            assert not actual.imag.any()

    @given(seed=st.integers(0, 2**31), angle=st.floats(-4, 4))
    def test_a_phase_of_the_input_is_one_of_the_output(self, seed, angle):
        layer = make(3, 5, 2, seed=seed)
        x, hx = torch.randn(6, 2, 3, dtype=DOUBLE), torch.randn(2, 2, 5, dtype=DOUBLE)
        phase = complex(math.cos(angle), math.sin(angle))
        turned, plain = layer(phase * x, phase * hx), layer(x, hx)
        for actual, expected in zip(turned, plain, strict=True):
            torch.testing.assert_close(actual, phase * expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("dtype", [torch.complex64, DOUBLE])
    def test_real_input_is_complex_input(self, dtype):
        layer = make(3, 5, 2, dtype=dtype)
        x = torch.randn(4, 2, 3, dtype=dtype.to_real())
        tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.complex64 else 1e-13}
        gradients = []
        for input in (x, x.to(dtype)):
            output, _ = layer(input)
            layer.zero_grad()
            output.abs().square().sum().backward()
            gradients.append([p.grad.clone() for p in layer.parameters()])
        torch.testing.assert_close(layer(x)[0], layer(x.to(dtype))[0], **tolerance)
        tolerance["atol"] *= 30
        for actual, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected, **tolerance)

    @pytest.mark.parametrize("num_layers", [1, 2])
    def test_a_sequence_can_be_cut(self, num_layers):
        layer = make(3, 5, num_layers)
        x = torch.randn(7, 2, 3, dtype=torch.float64)
        whole, h_n = layer(x)
        first, state = layer(x[:3])
        second, state = layer(x[3:], state)
        torch.testing.assert_close(torch.cat([first, second]), whole)
        torch.testing.assert_close(state, h_n)

    def test_linear_network_keeps_norms(self):
        layer = make(3, 8, 1, "identity", bias=False)
        hx = torch.randn(1, 4, 8, dtype=DOUBLE)
        output, _ = layer(torch.zeros(500, 4, 3, dtype=torch.float64), hx)
        norms = output.norm(dim=-1)
        torch.testing.assert_close(norms, hx.norm(dim=-1).expand_as(norms), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float64, DOUBLE])
    def test_inputs_are_left_alone(self, dtype):
        layer = make(3, 5, 2)
        x, hx = torch.randn(4, 2, 3, dtype=dtype), torch.randn(2, 2, 5, dtype=DOUBLE)
        before = x.clone(), hx.clone(), values(layer)
        layer(x, hx)[0].abs().sum().backward()
        assert torch.equal(x, before[0])
        assert torch.equal(hx, before[1])
        assert_same(values(layer), before[2])

    def test_silence_has_finite_gradients(self):
        # The state is exactly 0, where z/|z| has no derivative.
        layer = make(3, 5, 2)
        output, _ = layer(torch.zeros(4, 2, 3, dtype=torch.float64))
        assert not output.any()
        torch.view_as_real(output).sum().backward()
        assert not any(p.grad.any() for p in layer.parameters())

    @pytest.mark.parametrize("is_complex", [False, True])
    def test_autocast(self, is_complex):
        layer = make(3, 5, 2, dtype=torch.complex64)
        x = torch.randn(4, 2, 3)
        expected, _ = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, _ = layer(x.to(torch.complex64) if is_complex else x.bfloat16())
        assert output.dtype == torch.complex64
        # Two digits: bfloat16 carries 8 bits of the input's product; complex numbers keep all.
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 if is_complex else 0.15)
        output.abs().sum().backward()
        assert layer.weight_hh_l0.grad.dtype == torch.complex64


class TestDropout:
    def test_zeroes_complex_numbers_as_a_whole(self):
        layer = make(3, 5, 2, "identity", dropout=0.4, bias=False)
        with torch.no_grad():
            layer.weight_hh_l0.copy_(torch.eye(5))
            layer.weight_hh_l1.zero_()
            layer.weight_ih_l1.copy_(torch.eye(5))  # the output is what dropout lets through
        x = torch.randn(40, 5, 3, dtype=torch.float64)
        output, _ = layer(x)
        kept, _ = layer.eval()(x)
        ratio = output / kept
        dropped = ratio.abs() < 1e-12
        torch.testing.assert_close(ratio[~dropped], torch.full_like(ratio[~dropped], 1 / 0.6))
        # 1,000 entries: the standard error is 0.0155.
        assert dropped.double().mean().item() == pytest.approx(0.4, abs=0.08)

    def test_is_off_in_evaluation(self):
        layer, plain = make(3, 5, 2, dropout=0.5).eval(), make(3, 5, 2)
        x = torch.randn(4, 2, 3, dtype=torch.float64)
        assert torch.equal(layer(x)[0], plain(x)[0])

    def test_warns_at_the_caller_where_it_does_nothing(self):
        for layer in (UnitaryRNN, OrthogonalRNN):
            with pytest.warns(UserWarning, match="num_layers=1") as caught:
                layer(3, 5, dropout=0.5)
            assert caught[0].filename == __file__


class TestParameters:
    @pytest.mark.parametrize("init", UNITARY_INITIALIZATIONS)
    def test_start(self, init):
        torch.manual_seed(0)
        layer = UnitaryRNN(300, 64, 2, init=init)
        assert unitarity(layer) < 2e-6
        assert layer.weight_ih_l0.shape == (64, 300)
        assert layer.weight_ih_l1.shape == (64, 64)
        for weight, fan_in in ((layer.weight_ih_l0, 300), (layer.weight_ih_l1, 64)):
            for part in (weight.real, weight.imag):
                assert part.std().item() == pytest.approx((1 / fan_in) ** 0.5, rel=0.06)
        assert 0 < layer.bias_modrelu_l0.abs().max() <= 0.01
        for k in range(2):
            weight = layer.get_parameter(f"weight_hh_l{k}")
            assert isinstance(weight, ManifoldParameter)
            assert isinstance(weight.manifold, UnitaryGroup)
            assert weight.dtype == torch.complex64
            assert layer.get_parameter(f"bias_modrelu_l{k}").dtype == torch.float32
        if init != "identity":
            assert not torch.equal(layer.weight_hh_l0, layer.weight_hh_l1)

    def test_names_are_those_of_the_orthogonal_layer(self):
        for nonlinearity in COMPLEX_NONLINEARITIES:
            names = [
                {name: p.shape for name, p in layer(3, 5, 2, nonlinearity).named_parameters()}
                for layer in (UnitaryRNN, OrthogonalRNN)
            ]
            assert names[0] == names[1]
            assert list(names[0]) == list(names[1])

    def test_additive_bias_is_complex_and_starts_at_zero(self):
        layer = UnitaryRNN(3, 5, 1, "identity")
        assert layer.bias_ih_l0.dtype == torch.complex64
        assert not layer.bias_ih_l0.any()
        assert not hasattr(layer, "bias_modrelu_l0")

    def test_default_precision(self):
        torch.set_default_dtype(torch.float64)
        try:
            layer = UnitaryRNN(3, 5)
        finally:
            torch.set_default_dtype(torch.float32)
        assert layer.weight_hh_l0.dtype == DOUBLE
        assert layer.bias_modrelu_l0.dtype == torch.float64

    def test_init_by_name_and_by_function(self):
        by_default = make(3, 6, init="phases", randomize=False)
        by_function = make(3, 6, init=phases, randomize=False)
        assert_same(values(by_default), values(by_function))
        torch.manual_seed(0)
        assert_same(values(UnitaryRNN(3, 6, dtype=DOUBLE)), values(by_default))

    def test_reset_in_place(self):
        layer = make(3, 6, 2)
        before, parameters = values(layer), dict(layer.named_parameters())
        layer.reset_parameters()
        for name, parameter in layer.named_parameters():
            assert parameter is parameters[name]
            assert not torch.equal(parameter, before[name])
        assert unitarity(layer) < 1e-14

    def test_failing_reset_changes_nothing(self):
        layer = make(3, 6, 2)
        before = values(layer)
        layer.init = lambda d, **kwargs: torch.ones(d, d, dtype=DOUBLE)
        with pytest.raises(ValueError, match="must return a unitary matrix: "):
            layer.reset_parameters()
        assert_same(values(layer), before)

    def test_repr(self):
        assert repr(UnitaryRNN(3, 6)) == "UnitaryRNN(3, 6)"
        assert repr(UnitaryRNN(3, 6, 2, "identity", init="haar")) == (
            "UnitaryRNN(3, 6, num_layers=2, nonlinearity='identity', init='haar')"
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

    # torch warns of complex modules in general where a complex type is named.
    @pytest.mark.filterwarnings("ignore:Complex modules:UserWarning")
    @pytest.mark.parametrize(
        "convert",
        [
            lambda module: module.double(),
            lambda module: module.to(torch.float64),
            lambda module: module.to(DOUBLE),
            lambda module: module.to("cpu", torch.float64),
            lambda module: module.type(torch.float64),
        ],
    )
    @pytest.mark.parametrize("wrap", [lambda layer: layer, nn.Sequential])
    def test_conversions_change_the_precision(self, convert, wrap):
        layer = make(3, 6, dtype=torch.complex64)
        x = torch.randn(4, 2, 3)
        layer(x)[0].abs().sum().backward()
        before = {
            name: (p.detach().clone(), p.grad.clone()) for name, p in layer.named_parameters()
        }
        parameter = layer.weight_hh_l0
        convert(wrap(layer))
        for name, p in layer.named_parameters():
            for actual, expected in zip((p, p.grad), before[name], strict=True):
                double = torch.promote_types(expected.dtype, torch.float64)
                assert actual.dtype == double
                assert torch.equal(actual, expected.to(double))
        assert layer.weight_hh_l0 is parameter
        assert isinstance(parameter.manifold, UnitaryGroup)
        assert layer(x.double())[0].dtype == DOUBLE
        layer.float()
        assert_same(values(layer), {name: value for name, (value, _) in before.items()})

    def test_share_memory_and_devices(self):
        layer = make(3, 6)
        before = values(layer)
        layer.share_memory()
        assert all(p.is_shared() for p in layer.parameters())
        assert_same(values(layer.cpu()), before)
        meta = make(3, 6).to("meta")
        assert {p.device.type for p in meta.parameters()} == {"meta"}
        assert meta.weight_hh_l0.dtype == DOUBLE
        empty = meta.to_empty(device="cpu")
        empty.load_state_dict(layer.state_dict())
        assert_same(values(empty), before)

    @pytest.mark.parametrize("action", ["forward", "reset_parameters"])
    def test_plain_parameter_is_refused(self, action):
        layer = make(3, 6, 2)
        layer.weight_hh_l1 = nn.Parameter(layer.weight_hh_l1.detach())
        before = values(layer)
        arguments = [torch.randn(4, 2, 3, dtype=DOUBLE)] if action == "forward" else []
        with pytest.raises(TypeError, match=r"weight_hh_l1 has been replaced.*UnitaryGroup\(\)"):
            getattr(layer, action)(*arguments)
        assert_same(values(layer), before)


class TestSequenceModel:
    @pytest.mark.parametrize("readout", ["every", "last"])
    @pytest.mark.parametrize("batch_first", [False, True])
    def test_reads_both_parts(self, readout, batch_first):
        layer = make(3, 5, batch_first=batch_first)
        model = SequenceModel(layer, 4, readout)
        assert model.linear.in_features == 10
        assert model.linear.weight.dtype == torch.float64
        x = torch.randn(6, 2, 3, dtype=torch.float64)
        states, _ = layer(x)
        if readout == "last":
            states = states[:, -1] if batch_first else states[-1]
        weight = model.linear.weight
        expected = states.real @ weight[:, ::2].T + states.imag @ weight[:, 1::2].T
        torch.testing.assert_close(model(x), expected + model.linear.bias)

    def test_double(self):
        model = SequenceModel(UnitaryRNN(3, 5), 4)
        assert model(torch.randn(6, 2, 3)).dtype == torch.float32
        assert model.double()(torch.randn(6, 2, 3).double()).dtype == torch.float64


OPTIMIZERS = {
    "srgd": lambda p: SRGD(p, 0.01),
    "srgd with momentum": lambda p: SRGD(p, 0.002, momentum=0.9),
    "uniform": lambda p: SRCD(p, 0.05, Uniform(), seed=1),
    "cyclic": lambda p: SRCD(p, 0.05, Cyclic()),
    "gauss-southwell": lambda p: SRCD(p, 0.05, GaussSouthwell()),
    "block": lambda p: SRCD(p, 0.02, Block(fraction=0.1)),
    "disjoint block": lambda p: SRCD(p, 0.02, Block(size=4, disjoint=True)),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.complex64, DOUBLE])
def test_training_on_the_copying_task(kind, dtype):
    torch.manual_seed(0)
    task = CopyingMemory(length=5, letters=2, batch_size=16, seed=3, dtype=dtype.to_real())
    layer = UnitaryRNN(task.input_size, 12, dtype=dtype)
    model = SequenceModel(layer, task.output_size, task.readout)
    start = layer.weight_hh_l0.detach().clone()
    others = [p for p in model.parameters() if not isinstance(p, ManifoldParameter)]
    optimizers = [OPTIMIZERS[kind]([layer.weight_hh_l0]), torch.optim.Adam(others, lr=0.01)]
    losses = []
    for n in range(40):
        input, target = task[n]
        loss = task.loss(model(input), target)
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    assert (layer.weight_hh_l0 - start).abs().max() > 1e-3
    assert unitarity(layer) < (1e-6 if dtype == torch.complex64 else 1e-14)


@pytest.mark.parametrize("optimizer", [SRGD, lambda p, lr: SRCD(p, lr, GaussSouthwell())])
def test_recurrent_matrix_alone_descends(optimizer):
    """All else fixed, small steps along W lower a loss of full batches every time."""
    torch.manual_seed(0)
    layer = make(3, 6)
    x = torch.randn(8, 16, 3, dtype=torch.float64)
    target = make(3, 6, seed=1)(x)[0].detach()
    steps = optimizer([layer.weight_hh_l0], lr=0.005)
    losses = []
    for _ in range(15):
        loss = (layer(x)[0] - target).abs().square().mean()
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))
    assert unitarity(layer) < 1e-14


BAD_ARGUMENTS = {
    "hidden_size": ({"hidden_size": 1}, ValueError, "hidden_size must be at least 2, got 1"),
    "unknown": ({"nonlinearity": "gelu"}, ValueError, "unknown nonlinearity 'gelu'; choose one of"),
    "relu": ({"nonlinearity": "relu"}, ValueError, "'relu' is not for complex states"),
    "tanh": ({"nonlinearity": "tanh"}, ValueError, "'tanh' is not for complex states"),
    "bias": ({"bias": False}, ValueError, "modReLU without its bias is the identity"),
    "bidirectional": ({"bidirectional": True}, NotImplementedError, "a second UnitaryRNN"),
    "dtype": ({"dtype": torch.float32}, TypeError, r"torch\.complex64 or torch\.complex128, got"),
    "init name": ({"init": "henaff"}, ValueError, "'henaff'; choose one of phases, henaff-cayley"),
    "init type": ({"init": 3}, TypeError, "name or a function, got 3"),
    "init shape": ({"init": lambda d, **_: haar(d + 1)}, ValueError, r"\(6, 6\), got \(7, 7\)"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_constructor_errors(case):
    replacement, error, message = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=message):
        UnitaryRNN(**{"input_size": 3, "hidden_size": 6} | replacement)


BAD_INPUTS = {
    "features": ([torch.zeros(4, 2, 5)], ValueError, "(L, N, 3), or (L, 3) for one sequence, got"),
    "real dtype": (
        [torch.zeros(4, 2, 3).double()],
        TypeError,
        "have torch.complex64; convert the input with .to(torch.float32)",
    ),
    "complex dtype": (
        [torch.zeros(4, 2, 3, dtype=DOUBLE)],
        TypeError,
        "have torch.complex64; convert the input with .to(torch.complex64)",
    ),
    "hx shape": (
        [torch.zeros(4, 2, 3), torch.zeros(1, 3, 6, dtype=torch.complex64)],
        ValueError,
        "hx must have shape (1, 2, 6) to go with an input that is batched, got (1, 3, 6)",
    ),
    "hx dtype": ([torch.zeros(4, 2, 3), torch.zeros(1, 2, 6)], TypeError, "hx has dtype"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_input_errors(case):
    arguments, error, message = BAD_INPUTS[case]
    with pytest.raises(error, match=re.escape(message)):
        UnitaryRNN(3, 6)(*arguments)


def test_orthogonal_layer_refuses_complex_input():
    with pytest.raises(TypeError, match=r"convert the input with \.to\(torch\.float32\)"):
        OrthogonalRNN(3, 6)(torch.zeros(4, 2, 3, dtype=torch.complex64))
