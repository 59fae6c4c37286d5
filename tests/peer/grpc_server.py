"""A gRPC server by grpcio: `grpc_server.py [certificate key]` prints the port that it listens on.

Messages are plain bytes, so that nothing has to be generated. What the methods of `adit.Test` do:

Echo       unary: the message comes back, with the request's metadata `x-*` as initial and `y-*` as trailing metadata
Fail       unary: NOT_FOUND with details beyond ASCII and trailing metadata
Count      server streaming: as many messages as the request says
FailLate   server streaming: three messages, then RESOURCE_EXHAUSTED
Sum        client streaming: the total length and number of the messages
Chat       bidirectional: each message comes back before the next one is read; initial metadata goes out first
Hang       unary: nothing until the client gives up, which `Gone` then counts
Gone       unary: how many calls of `Hang` were given up
"""

import sys
import threading
from concurrent import futures

import grpc

gone = 0
lock = threading.Condition()


def echo(request, context):
    metadata = context.invocation_metadata()
    context.send_initial_metadata([(key, value) for key, value in metadata if key.startswith("x-")])
    context.set_trailing_metadata([(key, value) for key, value in metadata if key.startswith("y-")])
    return request


def fail(_request, context):
    context.set_trailing_metadata([("y-reason", "none such"), ("y-detail-bin", bytes(range(256)))])
    context.abort(grpc.StatusCode.NOT_FOUND, "nicht gefunden: ä % ☃")


def count(request, _context):
    for number in range(int(request)):
        yield str(number).encode()


def fail_late(_request, context):
    for number in range(3):
        yield str(number).encode()
    context.set_trailing_metadata([("y-after", "3")])
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


def total(requests, _context):
    lengths = [len(request) for request in requests]
    return f"{len(lengths)} {sum(lengths)}".encode()


def chat(requests, context):
    context.send_initial_metadata([("x-early", "1")])
    for request in requests:
        yield request


def hang(_request, context):
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait(30)
    global gone
    with lock:
        gone += 1
        lock.notify_all()
    return b""


def count_gone(request, _context):
    with lock:
        lock.wait_for(lambda: gone >= int(request), timeout=20)
        return str(gone).encode()


class Handler(grpc.GenericRpcHandler):
    METHODS = {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
        "Sum": grpc.stream_unary_rpc_method_handler(total),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Gone": grpc.unary_unary_rpc_method_handler(count_gone),
    }

    def service(self, details):
        return self.METHODS.get(details.method.rpartition("/")[2])


LIMITS = [
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.max_send_message_length", 16 << 20),
    ("grpc.max_metadata_size", 64 << 10),
    ("grpc.absolute_max_metadata_size", 64 << 10),
]
server = grpc.server(futures.ThreadPoolExecutor(64), handlers=[Handler()], options=LIMITS)
if len(sys.argv) > 2:
    with open(sys.argv[1], "rb") as certificate, open(sys.argv[2], "rb") as key:
        credentials = grpc.ssl_server_credentials([(key.read(), certificate.read())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"listening on {port}", flush=True)
server.wait_for_termination()
