"""Cap'n Proto messages of the tunnel: framing, RPC messages one by one, and the preamble of data streams."""

import os
import struct

import capnp

capnp.remove_import_hook()
_installed = os.path.dirname(capnp.__file__)
rpc = capnp.load(os.path.join(_installed, "rpc.capnp"), imports=[os.path.dirname(_installed)])
tunnel = capnp.load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "tunnel.capnp"))

REGISTRATION = 0xF71695EC7FE85497
SESSIONS = 0x839445A59FB01686
CONFIGURATION = 0xB48EDFBDAA25DB04

DATA_SIGNATURE = bytes.fromhex("0a36cd12a13e")
RPC_SIGNATURE = bytes.fromhex("52bb825cdb65")
VERSION = b"01"

KINDS = {"http": 0, "websocket": 1, "tcp": 2}


def take_message(buffer):
    """Cuts one framed message off the front of `buffer` (a bytearray); None while it is incomplete."""
    if len(buffer) < 4:
        return None
    segments = struct.unpack_from("<I", buffer)[0] + 1
    header = (4 + 4 * segments + 7) // 8 * 8
    if len(buffer) < header:
        return None
    words = sum(struct.unpack_from(f"<{segments}I", buffer, 4))
    length = header + 8 * words
    if len(buffer) < length:
        return None
    message = bytes(buffer[:length])
    del buffer[:length]
    return message


def _pointer_target(message, pointer):
    """Where the struct begins that the pointer at byte `pointer` points to, and its data size in words."""
    low, high = struct.unpack_from("<iI", message, pointer)
    return pointer + 8 + 8 * (low >> 2), high & 0xFFFF


def bootstrap_answer(question):
    """Return of a Bootstrap: capability 0, exported as senderHosted 0."""
    message = rpc.Message.new_message()
    answer = message.init("return")
    answer.answerId = question
    capabilities = answer.init("results").init("capTable", 1)
    capabilities[0].senderHosted = 0
    encoded = bytearray(message.to_bytes())
    # pycapnp sets capability pointers only from inside its own RPC system, so the pointer is written by hand:
    # Message, its only pointer to Return, its only pointer to Payload, whose first pointer is the content.
    place, data = _pointer_target(encoded, 8)
    for _ in range(2):
        place, data = _pointer_target(encoded, place + 8 * data)
    struct.pack_into("<II", encoded, place + 8 * data, 3, 0)
    return bytes(encoded)


def results(question, content):
    """Return with a struct as its results."""
    message = rpc.Message.new_message()
    answer = message.init("return")
    answer.answerId = question
    answer.init("results").content = content
    return message.to_bytes()


def failure(question, reason):
    """Return with an exception."""
    message = rpc.Message.new_message()
    answer = message.init("return")
    answer.answerId = question
    answer.init("exception").reason = reason
    return message.to_bytes()


def bootstrap(question):
    message = rpc.Message.new_message()
    message.init("bootstrap").questionId = question
    return message.to_bytes()


def call_on_bootstrap(question, bootstrap_question, interface, method, params):
    """Call pipelined on the promised answer of a Bootstrap."""
    message = rpc.Message.new_message()
    call = message.init("call")
    call.questionId = question
    call.interfaceId = interface
    call.methodId = method
    call.init("target").init("promisedAnswer").questionId = bootstrap_question
    call.init("params").content = params
    return message.to_bytes()


def finish(question):
    message = rpc.Message.new_message()
    message.init("finish").questionId = question
    return message.to_bytes()


def request_preamble(dest, kind, metadata):
    """Signature, version and ConnectRequest as one string of bytes."""
    request = tunnel.ConnectRequest.new_message()
    request.dest = dest
    request.type = KINDS.get(kind, kind)
    entries = request.init("metadata", len(metadata))
    for entry, (key, value) in zip(entries, metadata):
        entry.key = key
        entry.val = value
    return DATA_SIGNATURE + VERSION + request.to_bytes()


def read_response(message):
    """Error text and metadata pairs of a ConnectResponse."""
    with tunnel.ConnectResponse.from_bytes(message, traversal_limit_in_words=1 << 24) as response:
        return response.error, [[entry.key, entry.val] for entry in response.metadata]
