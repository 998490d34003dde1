"""Up to a hub and down again, over HTTP: a small server keeps what is uploaded."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
import torch
import yaml

from topa.errors import CheckpointError, ConfigError
from topa.model.checkpoint import checkpoint_folder
from topa.model.hub import push_checkpoint
from topa.model.language import Language
from topa.model.topa import TopaForConditionalGeneration

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The few addresses of a hub that an upload and a download ask for."""

    files: dict[str, bytes]
    asked: list[str]

    def log_message(self, *args):
        pass

    def answer(self, value, status=200, headers=()):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        for name, content in headers:
            self.send_header(name, content)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        self.asked.append(self.path)
        content = self.body()
        if self.path.endswith("/repos/create"):
            self.answer({"url": f"{self.server.address}/ann/small", "id": "ann/small"})
        elif "/preupload/" in self.path:
            names = [item["path"] for item in json.loads(content)["files"]]
            modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            self.answer({"files": modes})
        elif "/commit/" in self.path:
            for line in content.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"{self.server.address}/ann/small/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "success": True,
                }
            )
        elif self.path.endswith("/validate-yaml"):
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": f"unknown address {self.path}"}, 404)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0]
        if "/tree/" in path:
            self.answer(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in self.files.items()
                ]
            )
        elif path.startswith("/api/models/ann/small"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(
                {
                    "id": "ann/small",
                    "modelId": "ann/small",
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                    "downloads": 0,
                    "likes": 0,
                }
            )
        elif "/resolve/" in path and path.rsplit("/", 1)[1] in self.files:
            data = self.files[path.rsplit("/", 1)[1]]
            self.answer(data, headers=[("ETag", f'"{hashlib.sha1(data).hexdigest()}"')])
        else:
            self.answer({"error": "not found"}, 404, [("X-Error-Code", "RepoNotFound")])

    do_HEAD = do_GET


@pytest.fixture
def hub(monkeypatch, tmp_path):
    Hub.files, Hub.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield Hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(tmp_path):
    """A finished run directory, as pre-alignment writes it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("model:\n  variant: lora\n")
    result = {"steps": 7, "seconds": 61.2, "metrics": {"eval_loss": 2.345678}}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "environment.json").write_text(
        json.dumps({"python": "3.11.2", "gpu": None, "packages": {"torch": "2.13.0"}})
    )
    return folder


def test_what_is_pushed_comes_back(hub, run, make_model, make_llm):
    model = make_model("lora", llm_fingerprint="llm-1", tideos=["textvid"])
    address = model.push_to_hub("ann/small", run=run, token="x", private=True)
    assert address.endswith(f"/ann/small/commit/{COMMIT}")
    assert set(hub.files) == {"README.md", "config.json", "model.safetensors"}
    loaded = TopaForConditionalGeneration.from_pretrained(
        "ann/small", language=Language(make_llm(), None, "llm-1"), token="x"
    )
    for name, tensor in model.trainable_parameters():
        found = dict(loaded.trainable_parameters())[name]
        torch.testing.assert_close(found.double(), tensor, rtol=0, atol=1e-6)


def test_the_card_is_written_from_the_run(hub, run, make_model):
    model = make_model("lora", tideos=["textvid"], encoder="owner/clip")
    model.config.llm = "owner/llm-7b"
    push_checkpoint(model, "ann/small", run=run, token="x")
    _, header, text = hub.files["README.md"].decode().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert fields["base_model"] == "owner/llm-7b"
    assert fields["pipeline_tag"] == "video-text-to-text"
    count = sum(tensor.numel() for _, tensor in model.trainable_parameters())
    for part in (
        f"{count:,} trained",
        "`owner/clip`",
        "7 optimizer steps in 61 seconds",
        "| eval_loss | 2.346 |",
        "variant: lora",
        "torch 2.13.0",
        'from_pretrained("ann/small")',
    ):
        assert part in text, part


def test_a_card_without_a_run_says_so(hub, make_model):
    make_model("lora").push_to_hub("ann/small", token="x")
    assert "Nothing is recorded here of the run" in hub.files["README.md"].decode()


def test_what_is_not_there_is_refused(hub):
    with pytest.raises(CheckpointError, match=r"ann/none: neither a folder here nor"):
        checkpoint_folder("ann/none", token="x")


def test_a_hub_out_of_reach_is_named(monkeypatch, make_model):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"ann/small: the upload failed"):
        make_model("lora").push_to_hub("ann/small", token="x")


def test_a_name_without_an_owner_is_refused(make_model):
    with pytest.raises(ConfigError, match="not of the form OWNER/NAME"):
        make_model("lora").push_to_hub("small")


def test_a_folder_goes_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "ann" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert checkpoint_folder("ann/small").is_dir()


def test_unknown_arguments_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown arguments: revison"):
        TopaForConditionalGeneration.from_pretrained(tmp_path, revison="main")
