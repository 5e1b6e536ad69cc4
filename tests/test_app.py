import asyncio
import io
import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.places import ROOT

pytest.importorskip("gradio", reason="Gradio is not installed: pip install nl-detectron[app]")


@pytest.fixture(scope="module")
def server(python, weights):
    """The address of tools/app.py, running, with both models."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(python), str(ROOT / "tools/app.py"), "--port", str(port), "--device", "cpu"]
    command += ["--weights", str(weights["people"]), str(weights["shapes"])]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    printed = []
    for line in process.stdout:
        printed.append(line)
        if found := re.search(r"running on.*(http://\S+)", line, re.IGNORECASE):
            break
    else:
        pytest.fail("".join(printed)[-4000:])
    yield found[1]
    process.terminate()
    process.wait()


@pytest.fixture
def page(browser, server):
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.troubles, page.requested = [], []
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    page.on(
        "console",
        lambda message: page.troubles.append(message.text) if message.type == "error" else None,
    )
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(server)
    page.wait_for_selector("#image input[type=file]", state="attached")
    yield page
    page.close()


def shown(page, selector: str) -> np.ndarray:
    """What a picture on the page shows, as the browser has it."""
    page.wait_for_function(
        "s => { const i = document.querySelector(s); return i && i.complete && i.naturalWidth; }",
        arg=selector,
        timeout=60_000,
    )
    source = page.eval_on_selector(selector, "image => image.src")
    data = page.request.get(source).body()
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


@pytest.mark.slow
def test_upload_click_and_see_the_heat_map(page, picture, server):
    assert server.startswith("http://127.0.0.1:")
    page.set_input_files("#image input[type=file]", str(picture))
    page.locator("#threshold, input[type=number]").first.wait_for()
    drawn = shown(page, "#detections img")
    assert drawn.shape[:2] == (533, 800)
    page.wait_for_selector("#summary >> text=Found:")
    # A point at three quarters of the width and a quarter of the height: 90,20 in the image
    box = page.locator("#detections img").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    heat = shown(page, "#attention img")
    assert heat.shape[0] > 300 and heat.std() > 20
    # The query is marked where the click was: three quarters to the right within the heat map.
    cyan = (heat[:, :, 0] > 230) & (heat[:, :, 1] > 230) & (heat[:, :, 2] < 60)
    ys, xs = np.nonzero(cyan)
    ink = np.flatnonzero((heat < 250).any(2).mean(0) > 0.5)
    right = ink[np.flatnonzero(np.diff(ink, append=10**6) > 1)[0]]
    assert (xs.mean() - ink[0]) / (right - ink[0]) == pytest.approx(0.75, abs=0.03)
    assert page.locator("#attention >> text=backbone.bottom_up.res4.nl4").count() >= 1
    # Nothing is loaded from elsewhere, and nothing went wrong.
    elsewhere = [url for url in page.requested if not url.startswith((server, "data:", "blob:"))]
    assert elsewhere == [] and page.troubles == []
    screenshot = page.screenshot()
    assert cv2.imdecode(np.frombuffer(screenshot, np.uint8), cv2.IMREAD_COLOR).std() > 15


@pytest.mark.slow
def test_another_model_draws_anew(page, picture):
    page.set_input_files("#image input[type=file]", str(picture))
    shown(page, "#detections img")
    before = page.eval_on_selector("#detections img", "image => image.src")
    page.get_by_label("Model").click()
    page.get_by_role("option").nth(1).click()
    page.wait_for_function(
        "before => document.querySelector('#detections img').src != before", arg=before
    )
    shown(page, "#detections img")


@pytest.mark.slow
def test_what_is_no_image_is_named(page, tmp_path):
    file = tmp_path / "text.jpg"
    file.write_text("no image")
    page.set_input_files("#image input[type=file]", str(file))
    page.wait_for_selector("text=/text.jpg is no image that Pillow or OpenCV can read/")


def test_names_of_strangers_show_as_they_are():
    """All punctuation may be escaped in Markdown, where it then stands for itself."""
    from nl_detectron.app import as_markdown

    assert as_markdown("traffic light") == "traffic light"
    assert as_markdown("![x](http://a.b/c.png)") == r"\!\[x\]\(http\:\/\/a\.b\/c\.png\)"
    assert as_markdown("<img src=x>\n# a") == r"\<img src\=x\>\\n\# a"


def test_errors_are_no_html():
    import gradio as gr

    from nl_detectron.app import _shown_errors
    from nl_detectron.errors import UsageError

    with pytest.raises(gr.Error) as error, _shown_errors():
        raise UsageError("<img src=x>.jpg isn't there")
    assert error.value.message == "&lt;img src=x&gt;.jpg isn't there"


def ask(server: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(f"{server.rstrip('/')}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def detect(server: str, path: str) -> str:
    """What the page's own call answers to a file of this path on the server."""
    found = json.loads(ask(server, "/gradio_api/info")[1])["named_endpoints"]
    data = [{"path": path}, next(iter(found["/detect"]["parameters"][1]["type"]["enum"])), 0.5]
    body = json.dumps({"data": data}).encode()
    json_type = {"Content-Type": "application/json"}
    status, text = ask(server, "/gradio_api/call/detect", body, **json_type)
    assert status == 200, text
    return ask(server, f"/gradio_api/call/detect/{json.loads(text)['event_id']}")[1]


@pytest.mark.slow
def test_no_file_of_the_machine_but_uploads_is_read(server, picture, tmp_path):
    answers = {detect(server, str(path)) for path in (picture, tmp_path / "nothing.png")}
    assert len(answers) == 1  # nor does it tell whether a file exists
    assert "error" in answers.pop()
    for path in (picture, "/etc/passwd"):
        assert ask(server, f"/gradio_api/file={path}")[0] in (403, 404)


def test_no_address_is_fetched(monkeypatch, tmp_path):
    """One may stand for a file in the data of any part of the page."""
    from gradio import Error, processing_utils

    from nl_detectron.app import build_app

    async def download(url: str, cache_dir: str) -> str:
        pytest.fail(f"{url} would be fetched")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", download)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    app = build_app(lambda name: None, ["a model"])
    uploaded = tmp_path / "a.png"
    uploaded.write_bytes(b"an image")
    parts = [block for block in app.blocks.values() if hasattr(block, "preprocess")]
    assert len(parts) >= 6

    def moved(path: object, part: object) -> str:
        data = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        move = processing_utils.async_move_files_to_cache
        with ThreadPoolExecutor(1) as pool:  # as this thread's loop may be the browser's
            return pool.submit(lambda: asyncio.run(move(data, part))).result()["path"]

    for part in parts:
        for path in ("http://example.org/a.png", "HTTPS://example.org/a.png", "/etc/passwd"):
            with pytest.raises(Error, match="no uploaded image"):
                moved(path, part)
        assert moved(uploaded, part) == str(uploaded)


def test_a_page_that_others_reach_comes_with_a_warning(log):
    from nl_detectron.app import serve

    class Page:
        def launch(self, *, server_name: str, app_kwargs: dict, **_: object) -> None:
            self.name, [self.hosts] = server_name, app_kwargs["middleware"]

    page = Page()
    serve(page)
    assert page.name == "127.0.0.1" and "*" not in page.hosts.kwargs["allowed_hosts"]
    assert not log.records
    serve(page, host="0.0.0.0")
    assert page.name == "0.0.0.0" and page.hosts.kwargs["allowed_hosts"] == ["*"]
    assert "host 0.0.0.0: whoever reaches this machine there can use the page" in log.text


@pytest.mark.slow
def test_requests_by_another_name_are_refused(server):
    assert ask(server, "/")[0] == 200
    assert ask(server, "/", Host="evil.example")[0] == 400


@pytest.mark.slow
def test_uploads_are_limited(server):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = form + b"0" * 60_000_000 + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        assert ask(server, "/gradio_api/upload", body, **kind)[0] in (400, 413)
    except urllib.error.URLError as error:  # it may hang up before it has all
        assert isinstance(error.reason, (ConnectionResetError, BrokenPipeError))
    assert ask(server, "/")[0] == 200  # and goes on
    # Of more pixels than the page takes, which its head says before anything is decoded
    image = io.BytesIO()
    Image.new("1", (6000, 5000)).save(image, "png")
    body = form + image.getvalue() + b"\r\n--x--\r\n"
    [path] = json.loads(ask(server, "/gradio_api/upload", body, **kind)[1])
    assert "6000 x 5000 has more than 25,000,000 pixels" in detect(server, path)


def test_it_says_what_is_missing(tool, weights, monkeypatch):
    code, _, err = tool("app", "--weights", "nowhere.pth")
    assert code == 2 and "nowhere.pth does not exist" in err
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "nl_detectron.app", raising=False)
    code, _, err = tool("app", "--weights", weights["shapes"])
    assert code == 2 and "pip install nl-detectron[app]" in err


def test_a_taken_port_is_named(tool, weights):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = tool("app", "--weights", weights["shapes"], "--port", port)
    assert code == 2 and f"cannot serve at 127.0.0.1:{port}" in err
