"""refuse_splice.py ERROR PROGRAM [ARGUMENT ...]: runs a program for which splice(2) fails with that error.

Some sandboxes (gVisor, strict seccomp profiles) do this. The filter is seccomp's; it stays over exec.
"""

import ctypes
import os
import platform
import struct
import sys

# <linux/audit.h>, <asm/unistd.h>
KERNELS = {"x86_64": (0xC000003E, 275), "aarch64": (0xC00000B7, 76)}
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO = 0x7FFF0000, 0x00050000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
# Offsets in struct seccomp_data.
NUMBER, ARCHITECTURE = 0, 4


class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def main():
    error, command = int(sys.argv[1]), sys.argv[2:]
    architecture, splice = KERNELS[platform.machine()]
    instructions = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 0, 3, architecture),
        (LOAD, 0, 0, NUMBER),
        (JUMP_IF_EQUAL, 0, 1, splice),
        (RETURN, 0, 0, SECCOMP_RET_ERRNO | error),
        (RETURN, 0, 0, SECCOMP_RET_ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    program = Program(len(instructions), ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_ulong
    for option, value, pointer in [
        (PR_SET_NO_NEW_PRIVS, 1, None),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)),
    ]:
        if libc.prctl(ctypes.c_int(option), number(value), pointer, number(0), number(0)) != 0:
            sys.exit(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    os.execv(command[0], command)


main()
