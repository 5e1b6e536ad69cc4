from tests.fixtures import generated_sets, log, own_cache, python, seed, tool, weights  # noqa: F401
