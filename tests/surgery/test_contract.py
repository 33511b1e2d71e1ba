import pytest
from contract import run_surgery_test
from zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_every_tensor_of_the_zoo(name, tmp_path):
    run_surgery_test(ZOO[name](), tmp_path)
