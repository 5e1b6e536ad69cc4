from tests.fixtures import generated_sets, log, seed, tool, weights  # noqa: F401
