import pytest
from contract import run_surgery_test
from zoo import ZOO
from zoo_hub import HUB

from reusekit.graph import cut_points, read

# That a class of the user's own is not kept is tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:The .* is a plain functional model, not a")


@pytest.mark.parametrize("name", ZOO)
def test_every_tensor_of_the_zoo(name, tmp_path):
    run_surgery_test(ZOO[name](), tmp_path)


@pytest.mark.parametrize("name", HUB)
def test_every_tensor_of_kerashubs_models(name, tmp_path):
    member = HUB[name]
    run_surgery_test(member.build(), tmp_path, not_rebuilt=member.not_rebuilt)


@pytest.mark.parametrize("name", [name for name in HUB if HUB[name].blocks])
def test_every_block_is_a_clean_cut(name):
    graph = read(HUB[name].build())
    blocks = HUB[name].blocks
    everywhere = cut_points(graph, max_width=None)
    assert [everywhere[block].width for block in blocks] == [1] * len(blocks)
    # What the model puts out is not a place to cut it.
    inside = {block for block in blocks if graph.names[block] not in graph.outputs}
    assert inside and inside <= {point.at for point in cut_points(graph)}
