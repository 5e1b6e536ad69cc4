from tests.fixtures import generated_sets, log, own_cache, seed, tool, weights  # noqa: F401
