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

from givens.manifolds import Euclidean, OrthogonalGroup, constrain, refuse_assign

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


def assert_refuses(module, state):
    kept = module.weight
    value = kept.detach().clone()
    with pytest.raises(RuntimeError, match=r"'weight' by a plain one.*use assign=False"):
        module.load_state_dict(state, assign=True)
    assert module.weight is kept
    assert torch.equal(kept, value)


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
    assert_refuses(twin, layer.state_dict())


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


# refuse_assign


def test_assign_would_lose_the_manifold():
    layer = constrained()
    assert_refuses(layer, layer.state_dict())
    assert_refuses(layer, {"weight": torch.eye(4)})


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


def test_inside_a_model_the_error_names_the_whole_key():
    model = nn.Sequential(nn.Linear(4, 4), constrained())
    with pytest.raises(RuntimeError, match=r"manifold parameter '1\.weight'"):
        model.load_state_dict(model.state_dict(), assign=True)
    assert isinstance(model[1].weight, ManifoldParameter)


def test_a_parameter_made_by_hand_can_be_guarded():
    layer = Layer(torch.eye(3))
    layer.weight = ManifoldParameter(torch.eye(3), manifold=GROUP)
    refuse_assign(layer, "weight")
    assert_refuses(layer, {"weight": torch.eye(3)})
    layer.load_state_dict({"weight": -torch.eye(3)})
    assert torch.equal(layer.weight.detach(), -torch.eye(3))
