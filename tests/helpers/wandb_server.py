"""As much of the W&B server, on the loopback, as an online run needs: rows and files arrive, outages can be played."""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class WandbServer:
    """`with WandbServer() as server:` WANDB_BASE_URL=server.url, and any key of 40 characters."""

    def __init__(self) -> None:
        self.away = False  # answer everything with 503
        self.files: dict[str, bytes] = {}  # what was uploaded, by name
        self.operations: list[str] = []  # GraphQL, in order
        self._lines: dict[int, str] = {}  # of the history, by offset: they may come twice
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in sorted(self._lines.items())]

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        if path.endswith("/graphql"):
            request = json.loads(body)
            return {"data": self._graphql(request["query"], request.get("variables") or {})}
        if "file_stream" in path:
            history = json.loads(body).get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
            self._lines |= dict(enumerate(history["content"], start=history["offset"]))
            return {"exitcode": None, "limits": {}}
        if path.startswith("/upload/"):
            self.files[path.removeprefix("/upload/")] = body
        return {}

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found.group(1) if found else query
        self.operations.append(operation)
        project = {"id": "p", "name": "tests", "entity": {"name": "me"}}
        if operation == "UpsertBucket":
            run = {"id": "r", "name": given.get("name"), "displayName": "tiny-run-1", "config": given.get("config")}
            run |= {"description": None, "sweepName": None, "historyLineCount": 0, "tags": [], "notes": None}
            return {"upsertBucket": {"bucket": run | {"project": project}, "inserted": True, "configPatch": None}}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if operation in ("Viewer", "ViewerInfo"):
            viewer = {"id": "u", "entity": "me", "username": "me", "name": "me", "email": "", "flags": "{}"}
            return {"viewer": viewer | {"admin": False, "teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            return {"model": {**project, "bucket": None}}
        if operation.startswith("ServerFeatures"):
            return {"serverInfo": {"features": []}}
        return {"organization": {}}

    def _handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self._body()
                answer = {} if server.away else server.answer(self.path.split("?")[0], body)
                data = json.dumps(answer).encode()
                self.send_response(503 if server.away else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = _answer

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("content-length") or 0))
                return gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body

            def log_message(self, *_: object) -> None:
                pass

        return Handler
