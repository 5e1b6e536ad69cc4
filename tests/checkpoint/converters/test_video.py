"""Blocks of video-nonlocal-net, converted, compute what they computed there."""

import pickle

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from nl_detectron import NonLocalBlock
from nl_detectron.checkpoint import CheckpointError
from nl_detectron.checkpoint.converters import convert_file, convert_video_blocks

from .models import load_backbone, randomize


class VideoBlock(nn.Module):
    """spacetime_nonlocal of video-nonlocal-net without max-pooling, by its blobs' names."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.theta, self.phi, self.g = (nn.Conv3d(channels, inner, 1) for _ in range(3))
        self.out = nn.Conv3d(inner, channels, 1)
        self.bn = nn.BatchNorm3d(channels, eps=1.0000001e-5)
        self.inner = inner

    def forward(self, x):
        theta, phi, g = (layer(x).flatten(2) for layer in (self.theta, self.phi, self.g))
        p = torch.softmax(theta.transpose(1, 2) @ phi * self.inner**-0.5, dim=2)
        y = (g @ p.transpose(1, 2)).reshape(len(x), self.inner, *x.shape[2:])
        return x + self.bn(self.out(y))

    def blobs(self, prefix: str, kind: str) -> dict[str, np.ndarray]:
        found = {}
        for layer in ("theta", "phi", "g", "out"):
            conv = self.get_submodule(layer)
            found[f"{layer}_w"], found[f"{layer}_b"] = conv.weight, conv.bias
        scale, shift = self.bn.weight, self.bn.bias
        if kind == "affine":  # the norm folded, as in the files that training starts from
            deviation = (self.bn.running_var + self.bn.eps).sqrt()
            shift = shift - self.bn.running_mean * scale / deviation
            scale = scale / deviation
        else:
            found |= {"bn_rm": self.bn.running_mean, "bn_riv": self.bn.running_var}
        found |= {"bn_s": scale, "bn_b": shift}
        return {f"{prefix}_{name}": blob.detach().numpy() for name, blob in found.items()}


@pytest.mark.parametrize("kind", ["bn", "affine", "no bias"])
def test_video_blocks(kind):
    peer = VideoBlock(16, 8).double()
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.4)
    randomize(peer)
    blobs = peer.blobs("nonlocal_conv4_3", kind)
    if kind == "no bias":
        for layer in ("theta", "phi", "g", "out"):
            nn.init.zeros_(peer.get_submodule(layer).bias)
            del blobs[f"nonlocal_conv4_3_{layer}_b"]
    others = {"conv1_w": np.zeros((64, 3, 5, 7, 7)), "nonlocal_conv4_3_g_w_momentum": np.zeros(1)}
    converted = convert_video_blocks({**blobs, **others})
    assert converted.overrides["MODEL.NON_LOCAL.AFTER"] == ["res4.3"]
    block = NonLocalBlock(16, sub_sample=False).double()
    block.load_state_dict({n.removeprefix("res4.nl3."): w for n, w in converted.weights.items()})
    x = torch.randn(2, 16, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = peer(x.unsqueeze(2)).squeeze(2)
        assert (expected - x).std() > 0.01
        torch.testing.assert_close(block(x), expected)


def test_video_blocks_added_to_a_resnet(tmp_path):
    """As saved by Python 2's pickle with counters beside the blobs; the result loads whole."""
    blobs = {"model_iter": 5, "lr": np.float32(0.1)}
    for place, channels in (("conv3_1", 512), ("conv4_5", 1024)):
        blobs |= VideoBlock(channels, channels // 2).blobs(f"nonlocal_{place}", "bn")
    (tmp_path / "video.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "r50.pth")
    resnet = convert_file(
        str(tmp_path / "r50.pth"), str(tmp_path / "base.pth"), library="torchvision"
    )
    converted = convert_file(
        str(tmp_path / "video.pkl"),
        str(tmp_path / "out.safetensors"),
        library="video-nonlocal-net",
        base=str(tmp_path / "base.pth"),
    )
    assert converted.overrides["MODEL.NON_LOCAL.AFTER"] == ["res3.1", "res4.5"]
    overrides = {**resnet.overrides, **converted.overrides}
    name = "build_non_local_resnet_backbone"
    backbone = load_backbone(tmp_path / "out.safetensors", overrides, name)
    weight = torch.as_tensor(blobs["nonlocal_conv4_5_theta_w"]).double()
    assert torch.equal(backbone.res4.nl5.theta.weight.data, weight.flatten(2).unsqueeze(-1))
    with pytest.raises(CheckpointError, match="no block"):
        convert_video_blocks({"conv1_w": np.zeros(1)})
    del blobs["nonlocal_conv3_1_out_w"]
    with pytest.raises(CheckpointError, match="res3.nl1: out_w"):
        convert_video_blocks(blobs)
