"""A gRPC client by grpcio: `grpc_client.py 127.0.0.1:8000 name [ca.pem]` runs every check against grpc_server.py.

Prints JSON: the name of each check with `ok` or what was wrong.
"""

import json
import queue
import sys
import time
import traceback
from concurrent import futures

import grpc

PATIENCE = 30
LARGE = bytes(range(256)) * (5 * 1024 * 4)


def unary(channel):
    answer, call = channel.unary_unary("/adit.Test/Echo").with_call(b"hello", timeout=PATIENCE)
    assert answer == b"hello" and call.code() == grpc.StatusCode.OK


def metadata_both_ways(channel):
    sent = [("x-plain", "a, b"), ("x-some-bin", bytes(range(256))), ("y-end", "z"), ("y-end-bin", b"\0\1\2")]
    _, call = channel.unary_unary("/adit.Test/Echo").with_call(b"", timeout=PATIENCE, metadata=sent)
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert initial["x-plain"] == "a, b" and initial["x-some-bin"] == bytes(range(256)), initial
    assert trailing["y-end"] == "z" and trailing["y-end-bin"] == b"\0\1\2", trailing


def large_metadata(channel):
    sent = [(f"x-{number}", "v" * 1000) for number in range(24)] + [("y-end", "w" * 6000)]
    _, call = channel.unary_unary("/adit.Test/Echo").with_call(b"", timeout=PATIENCE, metadata=sent)
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert all(initial[f"x-{number}"] == "v" * 1000 for number in range(24)), initial
    assert trailing["y-end"] == "w" * 6000, trailing


def large_message(channel):
    answer = channel.unary_unary("/adit.Test/Echo")(LARGE, timeout=PATIENCE)
    assert answer == LARGE, len(answer)


def compressed_message(channel):
    answer = channel.unary_unary("/adit.Test/Echo")(LARGE, timeout=PATIENCE, compression=grpc.Compression.Gzip)
    assert answer == LARGE, len(answer)


def error_without_message(channel):
    try:
        channel.unary_unary("/adit.Test/Fail")(b"", timeout=PATIENCE)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error
        assert error.details() == "nicht gefunden: ä % ☃", error.details()
        trailing = dict(error.trailing_metadata())
        assert trailing["y-detail-bin"] == bytes(range(256)), trailing
        return
    raise AssertionError("no error")


def unknown_method(channel):
    try:
        channel.unary_unary("/adit.Test/Missing")(b"", timeout=PATIENCE)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
        return
    raise AssertionError("no error")


def server_streaming(channel):
    answers = list(channel.unary_stream("/adit.Test/Count")(b"500", timeout=PATIENCE))
    assert answers == [str(number).encode() for number in range(500)], len(answers)


def error_after_messages(channel):
    seen = []
    try:
        for answer in channel.unary_stream("/adit.Test/FailLate")(b"", timeout=PATIENCE):
            seen.append(answer)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
        assert dict(error.trailing_metadata())["y-after"] == "3"
        assert seen == [b"0", b"1", b"2"], seen
        return
    raise AssertionError("no error")


def client_streaming(channel):
    messages = (b"m" * number for number in range(300))
    answer = channel.stream_unary("/adit.Test/Sum")(messages, timeout=PATIENCE)
    assert answer == f"300 {sum(range(300))}".encode(), answer


def bidirectional_streaming(channel):
    requests = queue.Queue()
    call = channel.stream_stream("/adit.Test/Chat")(iter(requests.get, None), timeout=PATIENCE)
    # Before any message: headers must not wait for content.
    assert dict(call.initial_metadata())["x-early"] == "1"
    for number in range(200):
        message = str(number).encode() * 20
        requests.put(message)
        assert next(call) == message
    requests.put(None)
    assert list(call) == []
    assert call.code() == grpc.StatusCode.OK


def cancellation(channel):
    call = channel.unary_unary("/adit.Test/Hang").future(b"", timeout=PATIENCE)
    time.sleep(0.2)
    call.cancel()
    assert call.cancelled()
    channel.unary_unary("/adit.Test/Gone")(b"1", timeout=PATIENCE)


def deadline(channel):
    begin = time.monotonic()
    try:
        channel.unary_unary("/adit.Test/Hang")(b"", timeout=0.5)
        raise AssertionError("no deadline")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
        assert time.monotonic() - begin < 10
    assert int(channel.unary_unary("/adit.Test/Gone")(b"2", timeout=PATIENCE)) >= 2


def many_at_once(channel):
    call = channel.unary_unary("/adit.Test/Echo")
    with futures.ThreadPoolExecutor(32) as pool:
        wanted = [str(number).encode() * 3000 for number in range(400)]
        assert list(pool.map(lambda message: call(message, timeout=PATIENCE), wanted)) == wanted


CHECKS = [
    unary, metadata_both_ways, large_metadata, large_message, compressed_message, error_without_message,
    unknown_method, server_streaming, error_after_messages, client_streaming, bidirectional_streaming,
    cancellation, deadline, many_at_once,
]


def main(address, name, authority=None):
    options = [
        ("grpc.max_receive_message_length", 16 << 20),
        ("grpc.max_send_message_length", 16 << 20),
        ("grpc.max_metadata_size", 64 << 10),
        ("grpc.absolute_max_metadata_size", 64 << 10),
        ("grpc.enable_http_proxy", 0),
        ("grpc.default_authority", name),
    ]
    if authority:
        options.append(("grpc.ssl_target_name_override", name))
        with open(authority, "rb") as file:
            channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(file.read()), options)
    else:
        channel = grpc.insecure_channel(address, options)
    results = {}
    with channel:
        for check in CHECKS:
            try:
                check(channel)
                results[check.__name__] = "ok"
            except Exception:  # A failed check is a result; the others still run.
                results[check.__name__] = traceback.format_exc(limit=-2)
    print(json.dumps(results))


main(*sys.argv[1:])
