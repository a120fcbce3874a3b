"""A checkpoint's file: what goes in comes out, and other programs can read the tensors."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from autotune.execute.checkpoint_file import Unstorable, decode, encode


def through(content: Any) -> Any:
    return decode(io.BytesIO(b"".join(encode(content))))


def images() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).t(),
        images(),
        torch.randn(8, 5, 1, 1).to(memory_format=torch.channels_last),
        torch.tensor(2.5, dtype=torch.float64),
        torch.empty(0, 3),
        torch.tensor([True, False]),
        torch.tensor([2**63 + 1], dtype=torch.uint64),
        torch.tensor([-0.0, float("nan"), float("inf")], dtype=torch.bfloat16),
        torch.randn(3).to(torch.float8_e4m3fn),
        torch.randn(2, 3, dtype=torch.complex128),
        torch.randn(2, 3, dtype=torch.complex64).t().conj(),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_a_tensor_comes_back_bit_for_bit_and_as_it_lay(tensor: torch.Tensor) -> None:
    back = through({"some": tensor})["some"]
    assert (back.dtype, back.shape, back.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
    bits = [t.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for t in (back, tensor)]
    assert torch.equal(*bits)
    assert back.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_a_part_of_a_larger_tensor_is_kept_alone() -> None:
    whole = torch.randn(100, 100)
    for part in (whole[3], whole[:, :2], whole[:1].expand(5, 100), whole.t()[1:3], whole[50:]):
        data = b"".join(encode(part))
        assert len(data) < 4 * part.numel() + 500
        assert torch.equal(decode(io.BytesIO(data)), part)


def test_plain_values_come_back_as_they_were() -> None:
    content = {
        "numbers": [1, -2.5, True, 2**100, -0.0, 5e-324, float("inf"), None],
        "text": ['"quoted"', "naïve \ud800", ""],
        "betas": (0.9, (0.999,), []),
        "bytes": b"\x00\xff",
        "ordered": OrderedDict(b=1, a={}),
        0: {1.5: "float", True: "bool", (1, "two"): "tuple"},
        "0": "not the number",
    }
    back = through(content)
    assert back == content
    assert repr(back) == repr(content)
    assert through(float("nan")) != through(float("nan"))


def test_tensors_whose_keys_run_together_stay_apart() -> None:
    content = {"a": {"b": torch.tensor(1)}, "a.b": torch.tensor(2), 0: torch.tensor(3)}
    content |= {"0": torch.tensor(4), "__metadata__": torch.tensor(5)}
    back = through(content)
    assert [int(back["a"]["b"]), *map(int, (back["a.b"], back[0], back["0"]))] == [1, 2, 3, 4]
    assert int(back["__metadata__"]) == 5
    assert int(through(torch.tensor(6))) == 6


def test_any_reader_of_safetensors_reads_the_tensors(tmp_path: Path) -> None:
    state = {"weight": torch.randn(3, 2), "step": torch.tensor(7.0, dtype=torch.float64)}
    odd = torch.arange(3, dtype=torch.uint8)
    (tmp_path / "file").write_bytes(b"".join(encode({"state": state, "odd": odd})))
    read = load_file(tmp_path / "file")
    assert read.keys() == {"state.weight", "state.step", "odd"}
    assert torch.equal(read["state.weight"], state["weight"])
    assert torch.equal(read["state.step"], state["step"])
    assert torch.equal(read["odd"], odd)


def test_equal_content_gives_equal_bytes() -> None:
    def content() -> Any:
        return {"b": torch.ones(3), "a": [torch.zeros(2, dtype=torch.float64), 1.0]}

    assert b"".join(encode(content())) == b"".join(encode(content()))


class Own(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.eye(2).to_sparse(), r"checkpoint\['state'\]\[0\] is a torch.sparse_coo tensor"),
        (torch.ones(2, device="meta"), r"checkpoint\['state'\]\[0\] is a .*expected a dense"),
        (torch.ones(2).as_subclass(Own), r"checkpoint\['state'\]\[0\] is a .*\.Own"),
        ({frozenset(): 1}, r"checkpoint\['state'\]\[0\] has a key of type frozenset"),
        (1j, r"builtins\.complex"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, said: str) -> None:
    with pytest.raises(Unstorable, match=said):
        encode({"state": [value]})


def test_a_file_that_is_cut_or_goes_on_is_not_read() -> None:
    data = b"".join(encode({"state": torch.randn(20), "name": "x"}))
    for length in range(len(data)):
        with pytest.raises(Exception, match=r"."):
            decode(io.BytesIO(data[:length]))
    with pytest.raises(ValueError, match="goes on"):
        decode(io.BytesIO(data + b"0"))
