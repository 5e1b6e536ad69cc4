"""A table of figures from several pages has what these have."""

from .pages import cells_of, read

# In docs/blocks.md, in the results of the tasks, in the benchmark of the family
BLOCKS = {
    "NonLocalBlock": ("embedded Gaussian", "embedded Gaussian, sub-sampled"),
    "SimplifiedNonLocalBlock": ("simplified", "simplified"),
    "GlobalContextBlock": ("global context", "global context, D = C/16"),
    "DisentangledNonLocalBlock": ("disentangled", "disentangled, sub-sampled"),
    "CrissCrossBlock": ("criss-cross, twice", "criss-cross, twice"),
    "EfficientAttentionBlock": ("efficient attention", "efficient attention"),
    "AsymmetricNonLocalBlock": ("asymmetric", "asymmetric"),
    "EMABlock": ("expectation-maximization", "expectation-maximization"),
    "LatentGNNBlock": ("latent nodes", "latent nodes"),
}


def rows_of(page: str) -> list[list[str]]:
    """The cells of all rows of tables on a page."""
    return [cells_of(line) for line in read(page).splitlines() if line.startswith("|")]


def costs(page: str, name: str) -> tuple[str, str, str, str]:
    """GMAC, milliseconds of inference and training, and maps in training, of 1024 channels."""
    rows = {
        row[2]: row for row in rows_of(page) if row[0] == name and row[3:5] == ["50x84", "1024"]
    }
    inference, training = rows["inference"], rows["training"]
    return training[5], inference[6], training[6], training[9]


def expected_rows() -> list[list[str]]:
    solved = {row[0]: row[1:] for row in rows_of("projects/far_cue/README.md") if "of 5" in row[1]}
    made = []
    for block, (of_tasks, of_benchmark) in BLOCKS.items():
        gmac, inference, training, maps = costs("docs/benchmarks/family.md", of_benchmark)
        made.append([f"`{block}`", *solved[of_tasks], gmac, maps, inference, training])
    return made


def test_what_blocks_solve_and_cost():
    page = rows_of("docs/blocks.md")
    assert [row for row in expected_rows() if row not in page] == []
