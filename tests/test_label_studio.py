"""The round trip through Label Studio itself, and through a browser that shows it.

``make label-studio`` installs it, in an environment of its own. Its first start prepares a database
beside it, for minutes; later ones find it there."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
from conftest import REPOSITORY
from test_yours import PRESET, call, query, record

HOME = REPOSITORY / "build" / "label-studio"
TOKEN = "0123456789abcdef0123456789abcdef01234567"  # of a server that only this test can reach
WHO = ("somebody@example.org", "listen-and-type")
pytestmark = pytest.mark.skipif(
    not (HOME / "installed").exists(), reason="no Label Studio: make label-studio installs it"
)


class Studio:
    """A server on localhost, asked by its API."""

    def __init__(self):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        told = {"COLLECT_ANALYTICS": "False", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
                "LATEST_VERSION_CHECK": "False"}  # fmt: skip
        self.url = f"http://127.0.0.1:{self.port}"
        with open(HOME / "log", "w") as log:
            self.process = subprocess.Popen(
                [HOME / "bin" / "label-studio", "start", "--no-browser", "--data-dir",
                 HOME / "data", "--port", str(self.port), "--internal-host", "127.0.0.1",
                 "--username", WHO[0], "--password", WHO[1], "--user-token", TOKEN,
                 "--enable-legacy-api-token"],
                stdout=log, stderr=log, env={**os.environ, **told}, start_new_session=True,
            )  # fmt: skip

    def __enter__(self):
        for _ in range(600):  # the first time it makes its database
            assert self.process.poll() is None, (HOME / "log").read_text()[-2000:]
            try:
                self.ask("GET", "/api/version")
                return self
            except OSError:
                time.sleep(1)
        raise TimeoutError((HOME / "log").read_text()[-2000:])

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()

    def ask(self, method, path, body=b"", kind="application/json"):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": kind}
        request = urllib.request.Request(self.url + path, body or None, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read()[:500]}") from None

    def json(self, *what):
        return json.loads(self.ask(*what))

    def upload(self, path, file):
        """As the button "Import" does."""
        mark = "a-line-that-is-in-no-list-of-tasks"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{file.name}"'
        body = f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + file.read_bytes()
        kind = f"multipart/form-data; boundary={mark}"
        return json.loads(self.ask("POST", path, body + f"\r\n--{mark}--\r\n".encode(), kind))


# what somebody sees who opens a task
LOOK = """
import sys
from playwright.sync_api import sync_playwright
browser, url, task, *who = sys.argv[1:]
with sync_playwright() as p:
    page = p.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{url}/user/login/", wait_until="domcontentloaded")
    for name, text in zip(("email", "password"), who):
        page.fill(f"input[name={name}]", text)
    page.click("button[type=submit]")
    page.wait_for_url(lambda now: "login" not in now, wait_until="domcontentloaded")
    page.goto(f"{url}{task}", wait_until="domcontentloaded")
    page.wait_for_selector("text=Submit")
    page.wait_for_function("document.querySelector('canvas') || "
                           "document.body.innerText.includes('issue loading')")
    page.wait_for_timeout(3000)
    print(page.inner_text("body"))
"""


def test_tasks_are_imported_heard_corrected_exported_and_learned_from(root):
    (root / "configs" / "voices.yaml").write_text(PRESET)
    texts = record(root / "mine", seconds=(3.5, 4))  # longer than a field of a table may be
    rows, _ = query(root, "--budget", "5", "--format", "label-studio")
    folder = root / "build" / "jsonl-voices"
    with Studio() as studio:
        config = (folder / "label-studio.xml").read_text()
        project = studio.json("POST", "/api/projects/", {"title": "mine", "label_config": config})
        here = f"/api/projects/{project['id']}"
        done = studio.upload(f"{here}/import", folder / "to_transcribe.label-studio.json")
        assert (done["task_count"], done["prediction_count"]) == (5, 5)
        tasks = studio.json("GET", f"/api/tasks/?project={project['id']}&fields=all")["tasks"]
        tasks = {task["data"]["utt_id"]: task for task in tasks}
        assert list(tasks) == [row["utt_id"] for row in rows]
        for row in rows:
            (guess,) = tasks[row["utt_id"]]["predictions"]
            shown = [part["value"]["text"] for part in guess["result"]]
            assert shown == ([[row["guess"]]] if row["guess"] else [])
        first, cancelled, *more = tasks
        if browser := shutil.which("chromium"):
            page = f"/projects/{project['id']}/data?task={tasks[first]['id']}"
            seen = subprocess.run(
                [HOME / "bin" / "python", "-c", LOOK, browser, studio.url, page, *WHO],
                capture_output=True, text=True,
            )  # fmt: skip
            assert seen.returncode == 0, seen.stderr[-2000:]
            assert "issue loading" not in seen.stdout and "Write what is said" in seen.stdout
        for utt_id in (first, cancelled, *more[:2]):
            said = texts[utt_id] if utt_id != more[1] else "[unintelligible]"
            result = {"from_name": "transcription", "to_name": "audio", "type": "textarea",
                      "value": {"text": [said]}}  # fmt: skip
            studio.json("POST", f"/api/tasks/{tasks[utt_id]['id']}/annotations/",
                        {"result": [result], "was_cancelled": utt_id == cancelled})  # fmt: skip
        exports = {}
        for name, ending in (("JSON", "json"), ("JSON_MIN", "min.json"), ("CSV", "csv")):
            exports[name] = root / f"export.{ending}"
            exports[name].write_bytes(studio.ask("GET", f"{here}/export?exportType={name}"))
    kept = {}
    for name, file in exports.items():
        shutil.rmtree(root / "data" / "transcripts", ignore_errors=True)
        done = call(root, "learn", "--transcripts", str(file))
        assert done.returncode == 0 and "3 new transcripts" in done.stdout, (name, done.stderr)
        (path,) = (root / "data" / "transcripts").glob("*.jsonl")
        kept[name] = path.read_text()
    typed = [json.loads(line) for line in kept["JSON"].splitlines()]
    told = {row["utt_id"]: row["text"] for row in typed}
    assert told == {first: texts[first], more[0]: texts[more[0]], more[1]: "[unintelligible]"}
    assert len(set(kept.values())) == 1
    again, _ = query(root, "--budget", "5")
    assert {row["utt_id"] for row in again} & set(tasks) <= {cancelled, more[2]}
