"""Downloaded files against what is stated about them, from a server on this machine."""

import functools
import hashlib
import http.server
import io
import threading

import pytest
import torch
from detectron2 import model_zoo
from torch import nn

from nl_detectron.checkpoint import CheckpointError, NonLocalCheckpointer
from nl_detectron.checkpoint.download import SHA256, Digest, check_download, stated_digest

MASK_1X = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
MASK_3X = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl"
TORCH = "https://download.pytorch.org/models/"


@pytest.mark.parametrize(
    ("address", "digest"),
    [
        (model_zoo.get_checkpoint_url(f"{MASK_1X}.yaml"), Digest("md5", "a54504")),
        (f"detectron2://{MASK_3X}", Digest("sha256", SHA256[MASK_3X])),
        ("detectron2://ImageNetPretrained/MSRA/R-50.pkl", None),
        (f"{TORCH}resnet50-19c8e357.pth", Digest("sha256", "19c8e357")),
        (f"{TORCH}resnet50-19c8e357.pth?matching_heuristics=True", Digest("sha256", "19c8e357")),
        (
            "https://example.com/faster_rcnn_coco_20200205-d4b0c5d6.pth",
            Digest("sha256", "d4b0c5d6"),
        ),
        ("https://example.com/model-20200205.pth", None),  # a date
        ("https://example.com/model_final_f10217.pkl", None),  # not the zoo
        ("output/resnet50-19c8e357.pth", None),  # not downloaded
    ],
)
def test_what_is_stated(address, digest):
    assert stated_digest(address) == digest


def test_our_list_is_of_the_zoo():
    zoo = model_zoo.model_zoo._ModelZooUrls.CONFIG_PATH_TO_URL_SUFFIX
    assert SHA256.keys() <= {f"{name}/{suffix}" for name, suffix in zoo.items()}
    assert all(len(digits) == 64 and int(digits, 16) for digits in SHA256.values())


def test_md5_of_the_zoo(tmp_path, log):
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    md5 = hashlib.md5(b"weights").hexdigest()
    check_download(f"detectron2://a/model_final_{md5[:6]}.pkl", str(path))
    assert "has the md5 that is stated for it" in log.text
    check_download("detectron2://a/model_final_000000.pkl", str(path))
    assert f"has {md5}. Delete that file" in log.text  # a warning


def test_sha256_of_our_list(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"weights")
    with pytest.raises(CheckpointError, match=SHA256[MASK_3X]):
        check_download(f"detectron2://{MASK_3X}", str(path))


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_download_is_checked(server, log):
    folder, address = server
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict()}, file)
    digest = hashlib.sha256(file.getvalue()).hexdigest()
    name = f"linear-a{digest[1:8]}.pth" if digest[0] != "a" else f"linear-b{digest[1:8]}.pth"
    for stated in (f"linear-{digest[:16]}.pth", name):
        (folder / stated).write_bytes(file.getvalue())
    NonLocalCheckpointer(other).load(f"{address}/linear-{digest[:16]}.pth")
    assert torch.equal(other.weight, model.weight)
    assert "has the sha256 that is stated for it" in log.text
    with pytest.raises(CheckpointError, match=f"stated to begin with .*{digest}. Delete that file"):
        NonLocalCheckpointer(nn.Linear(2, 2)).load(f"{address}/{name}")
    with pytest.raises(CheckpointError, match="cannot be had .*404"):
        NonLocalCheckpointer(nn.Linear(2, 2)).load(f"{address}/nowhere.pth")
