from tests.fixtures import generated_sets, log, own_cache, python, quick_spawn, seed, tool, weights  # noqa: F401
