"""Uploading an exported model, through huggingface_hub's own client, to a hub that stands on this machine."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CODE = "import sys; from pathlib import Path; from data.console.command import run; "
CODE += "from distill.export import push; "
CODE += "run(lambda argv: print('at', push(Path(argv[0]), argv[1])))"


class Hub(ThreadingHTTPServer):
    """The part of the hub's protocol that an upload uses: repository, upload modes, LFS objects, commit."""

    def __init__(self, full=False):
        self.created, self.objects, self.files, self.full = None, {}, {}, full
        self.tokens = set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if status in {401, 403}:
            self.send_header("X-Error-Message", value["error"])
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        if self.headers.get("Authorization") is None:
            self.answer({"error": "Invalid username or password."}, 401)
            return
        self.answer({"sha": "0" * 40, "siblings": []})

    def do_PUT(self):
        self.server.objects[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer({})

    def do_POST(self):
        hub, path, body = self.server, self.path.split("?")[0], self.body()
        hub.tokens.add(self.headers.get("Authorization"))
        if self.headers.get("Authorization") is None:
            self.answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            hub.created = json.loads(body)
            self.answer({"url": f"{hub.address}/someone/judge"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            wanted = json.loads(body)["files"]
            modes = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for f in wanted
            ]
            self.answer({"files": modes})
        elif path.endswith(".git/info/lfs/objects/batch"):
            listed = [
                {**o, "actions": {"upload": {"href": f"{hub.address}/objects/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": listed})
        elif path.endswith("/commit/main"):
            if hub.full:
                self.answer({"error": "Storage limit reached."}, 403)
                return
            for line in body.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.objects[value["oid"]]
            where = f"{hub.address}/someone/judge/commit/{'1' * 40}"
            self.answer({"commitUrl": where, "commitOid": "1" * 40, "success": True})
        else:
            self.answer({"error": f"not part of this hub: {path}"}, 404)


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(tmp_path):
    """Stands for an exported directory: the card with the hub's metadata, small files and a large one."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "README.md").write_text("---\nlicense: mit\ntags: [distillation]\n---\n\n# judge\n")
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(os.urandom(1 << 16))
    return directory


def upload(hub, model, token="hf_given_by_the_user"):
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(model.parent / "home"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    if token:
        env["HF_TOKEN"] = token
    command = [sys.executable, "-c", CODE, str(model), "someone/judge"]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_what_arrives_is_the_directory_in_a_private_repository(hub, model):
    done = upload(hub, model)
    assert done.returncode == 0, done.stderr
    assert f"at {hub.address}/someone/judge" in done.stdout
    assert hub.created["name"] == "judge"
    assert hub.created["organization"] == "someone"
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_given_by_the_user"}
    assert hub.files == {f.name: f.read_bytes() for f in model.iterdir()}
    weights = (model / "model.safetensors").read_bytes()
    assert list(hub.objects) == [hashlib.sha256(weights).hexdigest()]


def test_a_refused_upload_says_why_and_that_the_model_is_safe(hub, model):
    hub.full = True
    done = upload(hub, model)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--push-to-hub someone/judge" in done.stderr
    assert "Storage limit reached" in done.stderr
    assert f"complete in {model}" in done.stderr
    assert hub.files == {}


def test_without_a_token_the_hub_refuses_and_the_message_says_so(hub, model):
    done = upload(hub, model, token="")
    assert done.returncode == 2
    assert "--push-to-hub someone/judge" in done.stderr
    assert "Traceback" not in done.stderr
    assert "401" in done.stderr
    assert hub.files == {}
