import pytest

pytest.register_assert_rewrite("tests.data.kind_checks")

from tests.fixtures import generated_sets, own_cache, python, seed  # noqa: E402, F401
