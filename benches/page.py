"""Measures the page of `soda ui` on many runs and a large data folder.

    python benches/page.py target/debug/soda [--runs 200] [--pictures 10000] [--steps 5000] [--blocks 12]

The bundled model is trained for a few steps once. Its folder is copied for each run, with a log of --steps steps. The data
folder has pictures of 256 x 256 pixels with captions. Every tenth has a mask file, and every twentieth an alpha channel.

| line | what is measured |
|---|---|
| a page | a new server; the requests of the page until it shows something, one after the other; the peak of the memory |
| a page in the browser | a new server; from the address to what the page shows, where Chromium is installed |
| findings | the check of all pictures, which the data page shows later |
| open pages | a training; blocks without a page and with four in turn; the ratio of a step's median times; the server's time |

A page is the stream of the events, and `GET` of the run and of its exports every four seconds, as in `run.js`. Needs Linux and
Python 3.10, and nothing else.
"""

import argparse
import base64
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

TOYBOX = Path(__file__).resolve().parent.parent / "examples" / "toybox"
SIDE = 256
SCRIPTS = ["app", "api", "dom", "chart", "compare", "comparison", "exports", "runs", "run", "new", "data", "paint", "play"]
CARDS = 24
"""The pictures of the first screen of the data page."""


def png(rows, width, color):
    """A PNG of 8 bits of these rows, with the color type `color` of the format."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, len(rows), 8, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def blocks(rng, channels):
    """Rows of 8 x 8 blocks of random colors, so that no two pictures are near-duplicates."""
    block = SIDE // 8
    rows = []
    for _ in range(8):
        rows += [b"".join(rng.randbytes(channels) * block for _ in range(8))] * block
    return rows


def make_pictures(folder, count):
    rng = random.Random(7)
    folder.mkdir()
    for number in range(count):
        name = f"{number:05}"
        has_alpha = number % 20 == 5
        picture = png(blocks(rng, 4 if has_alpha else 3), SIDE, 6 if has_alpha else 2)
        (folder / f"{name}.png").write_bytes(picture)
        (folder / f"{name}.txt").write_text(f"a photo of a sks thing, number {number}")
        if number % 10 == 0:
            (folder / f"{name}.mask.png").write_bytes(png(blocks(rng, 1), SIDE, 0))


def make_runs(soda, root, data, count, steps):
    template = root / "template"
    samples = 'samples={every=3, steps=2, prompts=["a photo of a sks mug"]}'
    settings = ["batch_size=1", samples, "validation.every=3"]
    train(soda, template, "run", 6, settings).wait()
    runs = root / "runs"
    for number in range(count):
        run = runs / f"run-{number:03}"
        shutil.copytree(template / "run", run)
        config = (run / "config.toml").read_text()
        old = next(line for line in config.splitlines() if line.startswith("data = "))
        config = config.replace(old, f"data = {json.dumps(str(data))}").replace("seed = 0", f"seed = {number}")
        (run / "config.toml").write_text(config.replace("steps = 6", f"steps = {steps}", 1))
        write_log(run / "events.jsonl", number, steps)
    return runs


def write_log(path, seed, steps):
    rng = random.Random(seed)
    start = 1.7e9 + seed * 1e5
    lines = [{"time": start, "event": "stage", "name": "training"}]
    lines.append({"time": start, "event": "started", "step": 0, "steps": steps})
    for step in range(1, steps + 1):
        values = {"loss": 0.2 + 0.1 * rng.random(), "grad_norm": rng.random(), "rotation_lr": 0.005, "flat_lr": 0.005}
        lines.append({"time": start + step, "event": "step", "step": step, "values": values | {"text_lr": 0.0, "token_lr": 0.0}})
        if step % 100 == 0:
            lines.append({"time": start + step, "event": "validation", "step": step, "values": {"validation_loss": rng.random()}})
    lines.append({"time": start + steps + 1, "event": "finished"})
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


def train(soda, runs, name, steps, settings):
    command = [soda, "train", "--base", TOYBOX / "base", "--data", TOYBOX / "subjects" / "castle_mug", "--device", "cpu"]
    command += ["--runs", runs, "--name", name, "--steps", str(steps)]
    for setting in settings:
        command += ["--set", setting]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class Server:
    def __init__(self, soda, runs, data):
        command = [soda, "ui", "--runs", runs, "--data", data, "--no-open", "--device", "cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        self.host, token = self.url.removeprefix("http://").split("/?token=")
        self.cookie = f"soda_ui_{self.host.split(':')[1]}={token}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def open(self, path):
        connection = http.client.HTTPConnection(self.host, timeout=900)
        connection.request("GET", path, headers={"Cookie": self.cookie})
        return connection.getresponse()

    def get(self, path):
        answer = self.open(path)
        body = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {body[:200]}")
        return body

    def json(self, path):
        return json.loads(self.get(path))

    def seconds(self):
        """The processor time of the server so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak(self):
        """The most memory that was resident, MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6


def page_requests(page, get, ids, data):
    """Does the requests of a page. `get` reads an address."""
    first = ids[0]
    if page == "runs":
        get("/api/runs")
    elif page == "run":
        get(f"/api/runs/{first}")
        get(f"/api/runs/{first}/exports")
        get(f"/api/runs/{first}/events?from=0")
        get(f"/api/runs/{first}/images/before")
        get(f"/api/runs/{first}/images/after")
    elif page == "compare":
        for run in ids[:4]:
            get(f"/api/runs/{run}/comparison")
        for run in ids[:4]:
            get(f"/api/runs/{run}/images/after")
    elif page == "new":
        get("/api/choices")
    elif page == "play":
        get("/api/adapters")
        get("/api/drawing")
    elif page == "data":
        get("/api/data")
        pictures = json.loads(get(f"/api/data/{data}"))["pictures"][:CARDS]
        for picture in pictures:
            get(f"/api/data/{data}/images/{picture['id']}")
            if picture["has_mask"]:
                get(f"/api/data/{data}/masks/{picture['id']}")


def measure_pages(make_server, ids, data):
    for page in ["runs", "run", "compare", "new", "play", "data"]:
        with make_server() as server:
            times = []

            def get(path):
                start = time.perf_counter()
                body = server.get(path)
                times.append((time.perf_counter() - start, path, len(body)))
                return body

            for path in ["/", "/assets/app.css", *(f"/assets/{name}.js" for name in SCRIPTS)]:
                get(path)
            page_requests(page, get, ids, data)
            whole = sum(one for one, _, _ in times)
            slowest = sorted(times, reverse=True)[:2]
            named = ", ".join(f"{path.replace(data, 'ID')} {1e3 * one:.0f} ms {size / 1e3:.0f} kB" for one, path, size in slowest)
            print(f"{page:<8} {whole:.2f} s, {server.peak():.0f} MB; slowest: {named}", flush=True)


def measure_findings(make_server, data):
    with make_server() as server:
        for which in ["first", "again"]:
            start = time.perf_counter()
            found = json.loads(server.get(f"/api/data/{data}/check"))["findings"]
            whole = time.perf_counter() - start
            print(f"findings {which}: {whole:.2f} s, {len(found)} found, {server.peak():.0f} MB", flush=True)


def page_process(server, run, stop):
    """What a page of a run that goes on asks for."""
    answer = server.open(f"/api/runs/{run}/events?from=0")
    stream = threading.Thread(target=lambda: [None for _ in iter(lambda: answer.read1(65536), b"")], daemon=True)
    stream.start()
    while not stop.wait(4):
        server.get(f"/api/runs/{run}")
        server.get(f"/api/runs/{run}/exports")
    answer.close()


def step_times(log):
    lines = [json.loads(line) for line in log.read_text().splitlines() if '"event":"step"' in line]
    return [(line["time"], line["time"] - before["time"]) for before, line in zip(lines, lines[1:])]


def measure_cost(soda, make_server, runs, count, seconds):
    log = runs / "measured" / "events.jsonl"
    training = train(soda, runs, "measured", 1_000_000, ["batch_size=1", "checkpoints.every=1000000"])
    spans = []
    try:
        with make_server() as server:
            while not (log.exists() and len(step_times(log)) > 10):
                if training.poll() is not None:
                    raise RuntimeError("the training ended")
                time.sleep(0.2)
            run = next(run["id"] for run in server.json("/api/runs")["runs"] if run["name"] == "measured")
            for block in range(2 * count):
                # The order within a pair alternates as well.
                pages = 4 if block % 4 in (1, 2) else 0
                stop = threading.Event()
                threads = [threading.Thread(target=page_process, args=(server, run, stop)) for _ in range(pages)]
                for thread in threads:
                    thread.start()
                # The lines so far are sent at the start.
                time.sleep(1)
                start, used = time.time(), server.seconds()
                time.sleep(seconds)
                end = time.time()
                spans.append((pages, start, end, (server.seconds() - used) / (end - start)))
                stop.set()
                for thread in threads:
                    thread.join()
            peak = server.peak()
    finally:
        training.kill()
        training.wait()
    times = step_times(log)
    of = lambda start, end: statistics.median(step for at, step in times if start < at <= end)
    medians = [(pages, of(start, end), share) for pages, start, end, share in spans]
    ratios = []
    for pair in zip(medians[::2], medians[1::2]):
        steps = {pages: step for pages, step, _ in pair}
        ratios.append(steps[4] / steps[0])
    for pages in [0, 4]:
        step, share = (statistics.median(one[field] for one in medians if one[0] == pages) for field in [1, 2])
        print(f"{pages} pages: a step {1e3 * step:.1f} ms, the server {100 * share:.2f} % of a core")
    low, _, high = statistics.quantiles(ratios, n=4)
    middle = statistics.median(ratios)
    print(f"ratio of a step, {len(ratios)} pairs: median {middle:.4f}, quartiles {low:.4f} to {high:.4f}, {peak:.0f} MB")


class Browser:
    """Chromium without a window, by its DevTools protocol over a web socket."""

    def __init__(self, program, profile):
        options = ["--headless", "--window-size=1400,900", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options.append("--remote-debugging-port=0")
        command = [program, f"--user-data-dir={profile}", *options, "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        address = next(line.split("ws://")[1].strip() for line in self.process.stderr if "DevTools listening on" in line)
        threading.Thread(target=lambda: [None for _ in self.process.stderr], daemon=True).start()
        host, path = address.split("/", 1)
        name, port = host.split(":")
        self.socket = socket.create_connection((name, int(port)), timeout=120)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        self.socket.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        self.file = self.socket.makefile("rb")
        while self.file.readline() != b"\r\n":
            pass
        self.number, self.session = 0, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        text = json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode()
        length = bytes([0x80 | len(text)]) if len(text) < 126 else bytes([0xFE]) + struct.pack(">H", len(text))
        self.socket.sendall(b"\x81" + length + bytes(4) + text)
        while True:
            answer = json.loads(self.receive())
            if answer.get("id") == self.number:
                return answer["result"]

    def receive(self):
        message = b""
        while True:
            first, length = self.file.read(2)
            if length >= 126:
                length = int.from_bytes(self.file.read(2 if length == 126 else 8), "big")
            message += self.file.read(length)
            if first & 0x80:
                return message

    def eval(self, expression):
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def end(self):
        self.process.kill()
        self.process.wait()


def measure_browser(make_server, ids, data, root):
    program = next((path for name in ["chromium", "chromium-browser", "google-chrome"] if (path := shutil.which(name))), None)
    if program is None:
        print("no browser is installed (Debian's package is chromium)")
        return
    seen = "[...document.images].filter((one) => one.getBoundingClientRect().top < innerHeight)"
    loaded = f"{seen}.length && {seen}.every((one) => one.complete && one.naturalWidth)"
    pages = {
        "runs": ("", f"document.querySelectorAll('tbody tr').length >= {len(ids)}"),
        "run": (f"run/{ids[0]}", "document.querySelectorAll('.log li').length > 1"),
        "compare": (f"compare/{','.join(ids[:4])}", f"document.querySelectorAll('.cell img').length === 4 && {loaded}"),
        "data": (f"data/{data}", f"document.querySelectorAll('.pictures > li').length && {loaded}"),
    }
    browser = Browser(program, root / "profile")
    try:
        # The first page of all waits for the browser itself.
        with make_server() as server:
            browser.call("Page.navigate", url=server.url)
            while not browser.eval("document.querySelector('h1')?.textContent"):
                time.sleep(0.02)
            browser.call("Page.navigate", url="about:blank")
        for page, (hash_, sign) in pages.items():
            with make_server() as server:
                # The first address gives the cookie and leads on to the page.
                start = time.perf_counter()
                browser.call("Page.navigate", url=f"{server.url}#/{hash_}")
                while not browser.eval(f"Boolean({sign})"):
                    if time.perf_counter() > start + 60:
                        raise RuntimeError(f"the page {page} shows nothing: {browser.eval('document.body.innerText')}")
                    time.sleep(0.02)
                print(f"{page:<8} in the browser {time.perf_counter() - start:.2f} s, {server.peak():.0f} MB", flush=True)
                browser.call("Page.navigate", url="about:blank")
    finally:
        browser.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("soda", type=Path, help="the program")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=5_000, help="steps in the log of each run")
    parser.add_argument("--blocks", type=int, default=12, help="pairs of blocks with and without open pages; 0 measures none")
    parser.add_argument("--seconds", type=float, default=12, help="length of a block")
    parser.add_argument("--folder", type=Path, help="where the runs and pictures are kept for another time")
    args = parser.parse_args()
    soda = args.soda.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.folder or Path(temporary)
        root.mkdir(exist_ok=True)
        data, runs = root / "photos", root / "runs"
        if not data.exists():
            make_pictures(data, args.pictures)
        if not runs.exists():
            make_runs(soda, root, data, args.runs, args.steps)
        make_server = lambda: Server(soda, runs, data)
        with make_server() as server:
            ids = [run["id"] for run in server.json("/api/runs")["runs"]]
            folder = next(one["id"] for one in server.json("/api/data") if one["path"] == str(data))
            load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
            print(f"{len(ids)} runs of {args.steps} steps, {args.pictures} pictures, {load}")
        measure_pages(make_server, ids, folder)
        measure_browser(make_server, ids, folder, Path(temporary))
        measure_findings(make_server, folder)
        if args.blocks:
            try:
                measure_cost(soda, make_server, runs, args.blocks, args.seconds)
            finally:
                shutil.rmtree(runs / "measured", ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
