"""What is said of a precision that the processor lacks."""

import pytest

from nl_detectron import Predictor
from nl_detectron.inference import processor
from nl_detectron.inference.processor import lacks_bfloat16, processor_flags


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    """Has the processor be one of which Linux would say this."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPU_INFO", file)
    return file.write_text


@pytest.mark.parametrize(
    ("text", "lacks"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512f\nflags\t\t: amx_bf16\n", True),
        ("flags\t\t: avx2 avx512_bf16\n", False),
        ("flags\t\t: avx2 amx_bf16\n", False),
        ("processor\t: 0\nFeatures\t: asimd bf16\n", False),
        ("Features\t: asimd\n", True),
        ("nothing that is known\n", False),
    ],
)
def test_bfloat16_is_read_from_the_flags(cpu_info, text, lacks):
    cpu_info(text)
    assert lacks_bfloat16(processor_flags()) is lacks


def test_nothing_is_claimed_where_no_flags_can_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "none")
    assert processor_flags() == frozenset() and not lacks_bfloat16(processor_flags())


def test_a_precision_that_the_processor_lacks_is_said_in_one_line(cpu_info, weights, log):
    cpu_info("flags : avx2\n")
    Predictor(weights["shapes"], device="cpu")
    assert "bfloat16" not in log.text
    Predictor(weights["shapes"], device="cpu", dtype="bfloat16")
    [message] = {record.message for record in log.records if "bfloat16" in record.message}
    assert message.startswith("dtype bfloat16: this processor has no such products")
    log.clear()
    cpu_info("flags : avx2 avx512_bf16\n")
    Predictor(weights["shapes"], device="cpu", dtype="bfloat16")
    assert "bfloat16" not in log.text
