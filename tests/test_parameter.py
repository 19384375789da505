"""Parameters of a module that live on a manifold."""

import copy
import io
import pickle

import geoopt
import pytest
import torch
from geoopt import ManifoldParameter
from hypothesis import given
from strategies import Noise, batch_shapes, defect, dims, dtypes, error, noises
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from givens.manifolds import Euclidean, OrthogonalGroup, constrain, keep_manifold
from givens.optim import SRCD

GROUP = OrthogonalGroup()


class Layer(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())


def constrained(seed=0, d=4):
    return constrain(Layer(Noise(seed).normal(d, d)), "weight", OrthogonalGroup("cayley"))


def saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def assert_on_group(module, value=None):
    """As :func:`constrain` left it; with a value, of that."""
    weight = module.weight
    assert type(weight) is ManifoldParameter
    assert isinstance(weight.manifold, OrthogonalGroup)
    assert weight.is_leaf
    assert next(module.parameters()) is weight
    if value is not None:
        assert torch.equal(weight.detach(), value)


# constrain


@given(batch_shapes, dims, dtypes, noises)
def test_the_parameter_starts_at_the_nearest_point(batch, d, dtype, noise: Noise):
    value = noise.normal(*batch, d, d, dtype=dtype)
    layer = Layer(value.clone())
    assert constrain(layer, "weight", GROUP) is layer
    weight = layer.weight
    assert isinstance(weight, ManifoldParameter)
    assert weight.manifold is GROUP
    assert [*layer.parameters()] == [weight]
    assert weight.dtype == dtype
    assert weight.requires_grad
    assert weight.is_leaf
    assert defect(weight) <= 3 * torch.finfo(dtype).eps
    assert torch.equal(weight, GROUP.projx(value))


def test_a_point_stays_where_it_is():
    x = Noise(0).point(5, 5)
    assert error(constrain(Layer(x.clone()), "weight", GROUP).weight.detach(), x) <= 1e-15


def test_what_is_frozen_stays_frozen():
    layer = Layer(torch.eye(3))
    layer.weight.requires_grad_(False)
    assert not constrain(layer, "weight", GROUP).weight.requires_grad


def test_the_layer_computes_with_it():
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad.shape == (4, 4)


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(geoopt.Sphere(), (3, 5)), (geoopt.Stiefel(), (5, 3)), (Euclidean(2), (3, 5))],
)
def test_any_manifold_will_do(manifold, shape):
    layer = constrain(Layer(Noise(0).normal(*shape)), "weight", manifold)
    assert layer.weight.manifold is manifold
    manifold.assert_check_point_on_manifold(layer.weight)


def test_a_second_manifold_replaces_the_first():
    layer = constrain(constrained(), "weight", Euclidean(2))
    assert isinstance(layer.weight.manifold, Euclidean)


def unchanged(module, error_type, match, name="weight"):
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    hooks = len(module._load_state_dict_pre_hooks)
    with pytest.raises(error_type, match=match):
        constrain(module, name, GROUP)
    after = dict(module.named_parameters())
    assert before.keys() == after.keys()
    assert len(module._load_state_dict_pre_hooks) == hooks
    for key, value in before.items():
        assert torch.equal(value, after[key])
        assert not isinstance(after[key], ManifoldParameter)


@pytest.mark.parametrize("name", ["wait", "", "0.weight"])
def test_a_parameter_that_is_not_there(name):
    unchanged(
        nn.Linear(2, 2), AttributeError, r"Linear has no parameter .*\['weight', 'bias'\]", name
    )


def test_a_parameter_that_is_none():
    unchanged(nn.Linear(2, 2, bias=False), AttributeError, "no parameter 'bias'", "bias")


@pytest.mark.parametrize("shape", [(3, 4), (4,), (1, 1), (2, 3, 4)])
def test_a_shape_that_no_point_has(shape):
    unchanged(Layer(torch.ones(shape)), ValueError, r"expects \(\.\.\., d, d\) with d >= 2")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.complex64])
def test_a_dtype_that_no_point_has(dtype):
    unchanged(Layer(torch.eye(3).to(dtype)), TypeError, f"float32 and float64, not in {dtype}")


# Copies, files, state_dict


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda module: pickle.loads(pickle.dumps(module)),
        lambda module: torch.load(saved(module), weights_only=False),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_a_copy_is_constrained_like_the_original(copied):
    layer = constrained()
    twin = copied(layer)
    assert isinstance(twin.weight, ManifoldParameter)
    assert isinstance(twin.weight.manifold, OrthogonalGroup)
    assert twin.weight.manifold.retraction == "cayley"
    assert torch.equal(twin.weight, layer.weight)
    assert twin.weight.data_ptr() != layer.weight.data_ptr()
    assert twin.weight.requires_grad
    # And guarded like it.
    twin.load_state_dict({"weight": torch.eye(4)}, assign=True)
    assert_on_group(twin, torch.eye(4))
    assert twin.weight.manifold.retraction == "cayley"
    assert torch.equal(twin.weight, torch.eye(4)) != torch.equal(layer.weight, twin.weight)


def test_state_dict_round_trip_under_the_default_of_torch_load():
    source, target = constrained(1), constrained(2)
    parameter = target.weight
    state = torch.load(saved(source.state_dict()), weights_only=True)
    target.load_state_dict(state)
    assert target.weight is parameter
    assert torch.equal(target.weight, source.weight)


def test_a_plain_state_dict_is_copied_in():
    layer = constrained()
    layer.load_state_dict({"weight": torch.eye(4)})
    assert isinstance(layer.weight, ManifoldParameter)
    assert torch.equal(layer.weight.detach(), torch.eye(4).double())


# keep_manifold


@pytest.fixture(params=["swap", "overwrite"])
def conversion(request):
    """Torch's other ways of converting a module."""
    name = f"set_{request.param}_module_params_on_conversion"
    getattr(torch.__future__, name)(True)
    yield request.param
    getattr(torch.__future__, name)(False)


def test_assigned_values_stay_on_the_manifold():
    layer, source = constrained(1), constrained(2)
    layer.weight.requires_grad_(False)
    value = source.weight.detach().clone()
    layer.load_state_dict(saved_state(source), assign=True)
    assert_on_group(layer, value)
    assert layer.weight.manifold.retraction == "cayley"
    assert not layer.weight.requires_grad
    layer.load_state_dict({"weight": torch.eye(4)}, assign=True)  # of another type
    assert_on_group(layer, torch.eye(4))


def saved_state(module):
    return torch.load(saved(module.state_dict()), weights_only=True)


def test_assigning_a_manifold_parameter_is_fine():
    source, target = constrained(1), constrained(2)
    target.load_state_dict(source.state_dict(keep_vars=True), assign=True)
    assert target.weight is source.weight


def test_other_keys_may_be_assigned():
    layer = constrain(nn.Linear(3, 3), "weight", GROUP)
    bias = torch.ones(3)
    layer.load_state_dict({"bias": bias}, assign=True, strict=False)
    assert torch.equal(layer.bias, bias)
    assert isinstance(layer.weight, ManifoldParameter)


def test_a_parameter_made_by_hand_can_be_guarded():
    layer = Layer(torch.eye(3))
    with pytest.raises(TypeError, match=r"'weight' is a plain Parameter.*constrain"):
        keep_manifold(layer, "weight")
    with pytest.raises(AttributeError, match=r"no parameter 'bias'; it has \['weight'\]"):
        keep_manifold(layer, "bias")
    layer.weight = ManifoldParameter(torch.eye(3), manifold=GROUP)
    keep_manifold(layer, "weight")
    keep_manifold(layer, "weight")
    layer.load_state_dict({"weight": -torch.eye(3)}, assign=True)
    assert_on_group(layer, -torch.eye(3))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "value",
    [2 * torch.eye(4), torch.full((4, 4), torch.nan), Noise(0).point(4, 4).bfloat16()],
    ids=["twice a point", "nan", "a rounded point"],
)
def test_values_off_the_manifold_are_loaded_and_not_trained(value, assign):
    """Loading is torch's; an optimizer sees what was loaded."""
    layer = constrained()
    layer.load_state_dict({"weight": value}, assign=assign)
    assert type(layer.weight) is ManifoldParameter
    with pytest.raises(ValueError, match="is no point of OrthogonalGroup"):
        SRCD(layer.parameters(), 0.1)


def test_other_errors_of_loading_are_torch_s():
    layer = constrained()
    with pytest.raises(RuntimeError, match=r"size mismatch for weight"):
        layer.load_state_dict({"weight": torch.eye(3)})
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"expected torch.Tensor"):
        layer.load_state_dict({"weight": 3})
    assert_on_group(layer)


def test_values_on_another_manifold_are_told_by_that():
    """By the parameter's manifold of today, not that of the first call."""
    layer = constrain(constrained(), "weight", geoopt.Stiefel())
    layer.load_state_dict({"weight": torch.eye(4)}, assign=True)
    assert isinstance(layer.weight.manifold, geoopt.Stiefel)
    layer.weight = ManifoldParameter(torch.ones(2), manifold=Euclidean(1))
    layer.load_state_dict({"weight": torch.tensor([2.0, 3.0])})
    assert isinstance(layer.weight.manifold, Euclidean)


@pytest.mark.parametrize("loading", ["copy", "assign"])
def test_from_the_meta_device_to_a_model_that_trains(loading):
    """Built without memory, given memory or none, and loaded."""
    source = constrain(nn.Linear(4, 4), "weight", GROUP)
    with torch.device("meta"):
        layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    assert layer.weight.is_meta
    if loading == "copy":
        layer.to_empty(device="cpu")
        with pytest.raises(TypeError, match="weight of Linear has been replaced by a plain"):
            layer(torch.ones(1, 4))
    layer.load_state_dict(source.state_dict(), assign=loading == "assign")
    assert_on_group(layer, source.weight.detach())
    assert torch.equal(layer(torch.ones(1, 4)), source(torch.ones(1, 4)))


def test_a_conversion_that_loses_the_manifold_is_noticed(conversion):
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    layer(torch.ones(1, 4)).sum().backward()
    layer.double()
    assert not isinstance(layer.weight, ManifoldParameter)  # torch's doing
    with pytest.raises(TypeError, match=r"weight of Linear.*plain parameter.*constrain\(\) again"):
        layer(torch.ones(1, 4).double())
    constrain(layer, "weight", GROUP)
    layer(torch.ones(1, 4).double())
    assert_on_group(layer)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_keeps_the_manifold_however_torch_converts(conversion, assign):
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    parameter = layer.weight
    state = constrain(nn.Linear(4, 4), "weight", GROUP).state_dict()
    layer.load_state_dict(state, assign=assign)
    assert_on_group(layer, state["weight"])
    assert (layer.weight is parameter) == (conversion == "swap" or not assign)
    layer.double()
    layer.load_state_dict(state, assign=assign)  # brings it back
    assert_on_group(layer)
    layer(torch.ones(1, 4, dtype=layer.weight.dtype))


def test_a_plain_parameter_in_its_place_is_noticed():
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    kept = layer.weight
    for lost in (nn.Parameter(torch.eye(4)), type(kept)(torch.eye(4))):  # the latter on ℝⁿ
        layer.weight = lost
        with pytest.raises(TypeError, match="weight of Linear has been replaced"):
            layer(torch.ones(1, 4))
    layer.weight = kept
    layer(torch.ones(1, 4))


def test_what_stands_in_for_it_for_a_moment_is_not():
    """Of functional_call, and of modules that have renamed the parameter."""
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    plain = {key: value.detach() + 1 for key, value in layer.named_parameters()}
    torch.func.functional_call(layer, plain, torch.ones(1, 4))
    torch.func.functional_call(layer, dict(layer.named_parameters()), torch.ones(1, 4))
    prune.l1_unstructured(layer, "weight", 0.5)
    layer(torch.ones(1, 4))
    layer.load_state_dict(layer.state_dict())
    assert isinstance(layer.weight_orig, ManifoldParameter)


@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.double(),
        lambda module: module.to("cpu", torch.float64),
        lambda module: module.double().float(),
        lambda module: module.share_memory(),
        lambda module: module.requires_grad_(False),
        lambda module: module.cpu(),
        lambda module: module.train().eval(),
        copy.copy,
    ],
    ids=["double", "to", "there and back", "share_memory", "freeze", "cpu", "eval", "copy"],
)
def test_a_conversion_keeps_it(convert):
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    value = layer.weight.detach().clone()
    layer = convert(layer)
    assert_on_group(layer, value.to(layer.weight.dtype))
    layer(torch.ones(1, 4, dtype=layer.weight.dtype))


# Neighbours in torch that take a parameter over


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize(
    "take",
    [
        lambda module: parametrize.register_parametrization(module, "weight", Twice()),
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
    ids=["parametrization", "spectral_norm", "orthogonal"],
)
def test_what_a_parametrization_starts_from_stays_on_the_manifold(take):
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    take(layer)
    layer(torch.ones(1, 4)).sum().backward()
    original = layer.parametrizations.weight.original
    assert isinstance(original, ManifoldParameter)
    assert defect(original) <= 1e-6
    assert original.grad.shape == (4, 4)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*:FutureWarning")
def test_weight_norm_has_no_use_for_it():
    """Its direction and length are parameters of their own; the newer refuses, the older replaces."""
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    with pytest.raises(RuntimeError, match="ManifoldParameter"):
        parametrizations.weight_norm(layer)
    nn.utils.weight_norm(layer)
    assert not any(isinstance(p, ManifoldParameter) for p in layer.parameters())


def test_a_point_is_not_taken_for_a_parameter():
    """``nn.Parameter(manifold.random(…))`` would have lost it."""
    with pytest.raises(RuntimeError, match="ManifoldTensor"):
        nn.Parameter(GROUP.random(3, 3))
    with pytest.raises(RuntimeError, match="ManifoldTensor"):
        nn.ParameterList([GROUP.random(3, 3)])
    weight = constrained().weight
    assert nn.ParameterList([weight])[0] is weight
    assert nn.ParameterDict({"w": weight})["w"] is weight


@pytest.mark.skipif(
    torch.__version__ < (2, 8),
    reason="before torch 2.8 a read of a subclass of Parameter breaks the graph",
)
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_guard_is_compiled_without_a_break(backend):
    layer = constrain(nn.Linear(4, 4), "weight", GROUP)
    compiled = torch.compile(layer, backend=backend, fullgraph=True)
    assert torch.equal(compiled(torch.ones(2, 4)), layer(torch.ones(2, 4)))
    torch._dynamo.reset()
