"""An origin by Python's own `http.server`: every request is answered with its target in `X-Uri`. Prints the port."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Nagle's algorithm and delayed acknowledgements would make each answer wait for 40 ms.
    disable_nagle_algorithm = True
    wbufsize = -1

    def answer(self):
        # Content is read only by Content-Length, as the simplest servers do.
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding"):
            while (line := self.rfile.readline().strip()) and (size := int(line.split(b";")[0], 16)):
                self.rfile.read(size + 2)
            while self.rfile.readline().strip():
                pass
        self.send_response(200)
        self.send_header("X-Uri", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_POST = do_PUT = do_OPTIONS = answer

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(f"listening on {server.server_port}", flush=True)
server.serve_forever()
