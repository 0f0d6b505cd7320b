"""HTTP: finds the route of a request, lets planned faults spoil the answer, and writes the log."""

import contextlib
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_hub import listing, reading, writing
from loopback_hub.exchange import Answer, Call, HubError
from loopback_hub.faults import corrupted

API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo_id>[^/]+/[^/]+)"
REPO = r"/(?P<prefix>datasets/|spaces/)?(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
OID = r"(?P<oid>[0-9a-f]{64})"
ROUTES = [
    ("GET", r"/api/whoami-v2", reading.whoami),
    ("GET", r"/api/models", listing.list_models),
    ("GET", rf"{API}/auth-check", reading.auth_check),
    ("GET", rf"{API}(?:/revision/{REVISION})?", reading.repository_info),
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", reading.tree),
    ("POST", rf"{API}/paths-info/{REVISION}", reading.paths_info),
    ("GET", rf"{API}/refs", reading.references),
    ("GET", rf"{API}/commits/{REVISION}", reading.commits),
    ("GET", rf"{REPO}/resolve/{REVISION}/(?P<path>.+)", reading.resolve),
    ("GET", rf"/store/[^/]+/[^/]+/{OID}/.+", reading.stored),
    ("POST", r"/api/repos/create", writing.create_repository),
    ("DELETE", r"/api/repos/delete", writing.delete_repository),
    ("POST", rf"{API}/branch/(?P<name>[^/]+)", writing.create_branch),
    ("POST", rf"{API}/tag/{REVISION}", writing.create_tag),
    ("POST", r"/api/validate-yaml", writing.validate_card),
    ("POST", rf"{API}/preupload/{REVISION}", writing.preupload),
    ("POST", rf"{REPO}\.git/info/lfs/objects/batch", writing.large_file_batch),
    ("PUT", rf"/store/[^/]+/[^/]+/{OID}", writing.store_large_file),
    ("POST", rf"{REPO}\.git/info/lfs/verify", writing.verify_large_file),
    ("POST", rf"{API}/commit/{REVISION}", writing.commit),
]
ROUTES = [(method, re.compile(pattern), serve) for method, pattern, serve in ROUTES]
SERIAL = threading.Lock()
GATEWAY_ERRORS = (502, 503, 504)  # whose answers are pages, not the Hub's JSON


@dataclass(frozen=True)
class LogEntry:
    """One request as it was answered; `sent` and `received` count bytes of body, `status` is 0 for no answer."""

    method: str
    path: str
    status: int
    authorized: bool
    range: str | None
    sent: int
    received: int


class Dropped(Exception):
    """The connection is to be closed."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *args):
        pass

    def serve(self):
        address = urlsplit(self.path)
        self.shown = unquote(address.path)
        self.received = 0
        try:
            body = self.read_body()
            answer = self.answer(address, body)
            if self.fault("answered"):
                raise Dropped
            sent, status = self.send_answer(answer), answer.status
        except Dropped:
            sent, status, self.close_connection = 0, 0, True
        except (BrokenPipeError, ConnectionResetError):
            sent, status, self.close_connection = 0, 0, True
        authorized = self.headers.get("Authorization") is not None
        self.hub.log.append(
            LogEntry(
                self.command, self.shown, status, authorized, self.headers.get("Range"), sent, received=self.received
            )
        )

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def fault(self, stage: str):
        return self.hub.next_fault(stage, self.command, self.shown)

    def read_body(self) -> bytes:
        fault = self.fault("upload") if self.command == "PUT" else None
        cut = fault.keep if fault and fault.kind == "cut_upload" else None
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size if cut is None else int(size * cut))
        self.received = len(body)
        if cut is not None:
            raise Dropped
        return corrupted(body) if fault else body

    def answer(self, address, body: bytes) -> Answer:
        if fault := self.fault("any"):
            if fault.kind == "drop":
                raise Dropped
            if fault.status in GATEWAY_ERRORS:
                return Answer(fault.status, b"<html><h1>Gateway</h1></html>", {"Content-Type": "text/html"})
            return HubError(
                fault.status, "Internal Error - We're working hard to fix this as soon as possible!"
            ).answer()
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, route in ROUTES:
            if wanted == method and (match := pattern.fullmatch(address.path)):
                values = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
                if "prefix" in match.groupdict():
                    values["kind"] = values.setdefault("prefix", "").removesuffix("s/") or "model"
                try:
                    user = None if address.path.startswith("/store/") else self.user()
                    query = parse_qs(address.query)
                    call = Call(self.hub, method, address.path, query, self.headers, body, user, values)
                    with SERIAL:
                        return self.told(route(call))
                except HubError as error:
                    return error.answer()
        return HubError(404, f"Sorry, we can't find the page you are looking for: {address.path}").answer()

    def user(self):
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return None
        user = self.hub.users.get(authorization.removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return user

    def told(self, answer: Answer) -> Answer:
        """The answer to a commit, under a fault "other_sha" with a sha that no commit has."""
        if re.search("/commit/[^/]+$", self.shown) and self.command == "POST" and self.fault("commit"):
            answer.body = re.sub(rb'("commitOid": ")[0-9a-f]{40}', rb"\g<1>" + b"0" * 40, answer.body)
        return answer

    def send_answer(self, answer: Answer) -> int:
        """Write the answer; of a file's bytes, what a fault leaves of them."""
        body, announced, cut = answer.body, len(answer.body), False
        if answer.content and self.command == "GET" and (fault := self.fault("download")):
            kept, cut = body[: int(len(body) * fault.keep)], fault.kind == "cut"
            body = {"corrupt": corrupted(body), "replace": fault.content}.get(fault.kind, kept)
            announced = announced if cut else len(body)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(announced))
        self.end_headers()
        if self.command == "HEAD":
            return 0
        self.wfile.write(body)
        if cut:
            with contextlib.suppress(OSError):
                self.wfile.flush()
            self.close_connection = True
        return len(body)
