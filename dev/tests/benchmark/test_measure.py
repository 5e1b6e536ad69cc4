import torch

from dev.benchmark.measure import MatrixProduct, alternate, held_memory, peak_memory


def test_functions_run_in_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = alternate(functions, seconds=0, at_least=3)
    assert calls == list("ab" * 3)
    assert list(times) == ["a", "b"]
    assert all(seconds >= 0 for seconds in times.values())


def test_time_left_is_used_up_to_a_number_of_rounds():
    calls = []
    alternate({"a": lambda: calls.append(0)}, seconds=60, at_least=1, at_most=5)
    assert len(calls) == 5


def test_peak_memory_is_exact():
    def function():
        a = torch.empty(1000)
        b = torch.empty(500)  # 6000 bytes here
        del a
        return b, torch.empty(250)

    # The CPU's allocator hands out what is asked for.
    assert peak_memory(function) == 6000


def test_held_memory_is_what_is_left():
    def function():
        torch.empty(1000)
        return torch.empty(250)

    assert held_memory(function) == 1000


def test_peak_memory_is_what_is_added():
    x = torch.empty(1000, requires_grad=True)

    def step():
        (x.exp() * 2).sum().backward()

    # exp, its double, the sum; on the way back the gradients of sum and double beside exp
    assert 8000 < peak_memory(step) <= 4 * 4000 + 8


def test_matrix_product_counts_two_operations_for_a_multiply_add(monkeypatch):
    monkeypatch.setattr("dev.benchmark.measure.MATRIX_SIZE", {"cpu": 8})
    product = MatrixProduct(torch.bfloat16, "cpu")
    product()
    assert product.flops == 2 * 8 * 8 * 8
    assert product._product.dtype == torch.bfloat16
    torch.testing.assert_close(product._product, product._a @ product._b)
