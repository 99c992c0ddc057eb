import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hadamard_core.orientation import OutputSlice, features, is_supported, weight_as_linear


def projections():
    torch.manual_seed(0)
    return [nn.Linear(5, 12), nn.Linear(5, 12, bias=False), Conv1D(12, 5)]


@pytest.mark.parametrize("projection", projections(), ids=repr)
def test_every_projection_is_read_as_out_by_in(projection):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    bias = 0 if projection.bias is None else projection.bias

    assert features(projection) == (5, 12)
    assert weight_as_linear(projection).shape == (12, 5)
    torch.testing.assert_close(x @ weight_as_linear(projection).T + bias, projection(x))


@pytest.mark.parametrize("projection", projections(), ids=repr)
def test_writing_to_the_linear_weight_writes_to_the_module(projection):
    with torch.no_grad():
        weight_as_linear(projection)[7] = 0
        output = projection(torch.ones(2, 5)) - (0 if projection.bias is None else projection.bias)

    assert (output[:, 7] == 0).all()
    assert (output[:, 6] != 0).all()


def test_a_subclass_counts_as_its_parent():
    class Named(nn.Linear):
        pass

    assert is_supported(Named(2, 3))
    assert features(Named(2, 3)) == (2, 3)


@pytest.mark.parametrize("module", [nn.Conv1d(2, 2, 1), nn.Embedding(2, 2), nn.Bilinear(2, 2, 2)], ids=repr)
def test_modules_of_other_kinds_are_refused_by_name(module):
    assert not is_supported(module)
    with pytest.raises(TypeError, match=type(module).__name__):
        features(module)
    with pytest.raises(TypeError, match=type(module).__name__):
        weight_as_linear(module)


def test_a_packed_weight_is_refused_with_its_shape():
    packed = nn.Linear(4, 6)
    packed.weight = nn.Parameter(torch.zeros(12, 1))

    with pytest.raises(TypeError, match=r"\(12, 1\) in place of \(6, 4\)"):
        weight_as_linear(packed)


def test_a_contiguous_part_is_a_view():
    weight = torch.arange(12.0).reshape(6, 2)
    middle = OutputSlice(part=1, parts=3)

    assert middle.index(6).tolist() == [2, 3]
    assert middle.select(weight, 0).data_ptr() == weight[2:].data_ptr()


def test_a_part_of_each_head_is_gathered_head_by_head():
    # two heads of size 2, each with its query, key and value
    assert OutputSlice(part=0, parts=3, groups=2).index(12).tolist() == [0, 1, 6, 7]
    assert OutputSlice(part=2, parts=3, groups=2).index(12).tolist() == [4, 5, 10, 11]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_select_is_index_select(groups, dim):
    tensor = torch.randn(24, 24, generator=torch.Generator().manual_seed(0))
    for part in range(3):
        a_slice = OutputSlice(part, 3, groups)

        assert a_slice.size(24) == 8
        torch.testing.assert_close(
            a_slice.select(tensor, dim), tensor.index_select(dim, a_slice.index(24)), rtol=0, atol=0
        )


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_parts_cover_every_feature_once(groups):
    covered = torch.cat([OutputSlice(part, 3, groups).index(24) for part in range(3)])

    assert sorted(covered.tolist()) == list(range(24))


def test_select_passes_gradients_to_its_own_features_only():
    for groups in (1, 2):
        weight = torch.ones(12, 3, requires_grad=True)
        query = OutputSlice(0, 3, groups)
        query.select(weight, 0).sum().backward()

        assert (weight.grad[query.index(12)] == 1).all()
        assert weight.grad.sum() == 12


def test_index_does_not_follow_the_default_device():
    with torch.device("meta"):
        assert OutputSlice(0, 3).index(6).tolist() == [0, 1]


@pytest.mark.parametrize("fields", [(3, 3), (-1, 3), (0, 0), (0, 3, 0)])
def test_impossible_slices_are_refused(fields):
    with pytest.raises(ValueError, match="slice"):
        OutputSlice(*fields)


def test_a_projection_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="14 output features"):
        OutputSlice(0, 3).select(torch.zeros(14, 2), 0)
    with pytest.raises(ValueError, match="3 equal parts in each of 4 groups"):
        OutputSlice(0, 3, 4).index(18)
