"""What a scorer's process gives up before it opens a model: programs, children, the network, changing files.

Invariant: nothing given up here can be had back by code that runs later in the process. On Linux for x86-64 and
arm64 the kernel keeps it (seccomp); elsewhere the limits on memory and files remain, and the process apart.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FILE_BYTES = 16 * 2**20
"""A scorer writes its log and nothing else."""

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 4, 22, 38
_FILTER = 2
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _DENY, _ABSENT, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True, slots=True)
class _Calls:
    """Numbers of Linux's system calls. `flags_at`: of a call that opens files, which argument holds the flags."""

    architecture: int
    clone: int
    tgkill: int
    flags_at: Mapping[int, int]
    denied: Sequence[int]


_HIDING_THEIR_ARGUMENTS = (435, 437)
"""clone3 and openat2 take them by address: the C library falls back to clone and openat."""
_X86_64 = _Calls(
    0xC000003E,
    clone=56,
    tgkill=234,
    flags_at={2: 1, 257: 2},
    denied=(
        *(59, 322, 57, 58),  # execve, execveat, fork, vfork
        *(41, 42, 49),  # socket, connect, bind
        *(101, 310, 311, 62, 200, 434, 438),  # ptrace, process_vm_readv/_writev, kill, tkill, pidfd_open, pidfd_getfd
        *(85, 76, 82, 264, 316, 83, 258, 84, 87, 263),  # creat, truncate, rename.., mkdir.., rmdir, unlink..
        *(86, 265, 88, 266, 133, 259, 90, 268, 452, 92, 94, 260),  # link.., symlink.., mknod.., chmod.., chown..
        *(425, 272, 308, 165, 304, 321, 323, 298, 250),  # io_uring_setup, unshare, setns, mount, open_by_handle_at, ..
    ),
)
_ARM64 = _Calls(
    0xC00000B7,
    clone=220,
    tgkill=131,
    flags_at={56: 2},
    denied=(
        *(221, 281, 198, 203, 200, 117, 270, 271, 129, 130, 434, 438),
        *(45, 38, 276, 34, 35, 37, 36, 33, 53, 452, 54),
        *(425, 97, 268, 40, 265, 280, 282, 241, 219),
    ),
)
_MACHINES = {"x86_64": _X86_64, "aarch64": _ARM64}
"""From arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def limit(memory: int) -> None:
    """Private memory of what the process has now plus `memory` bytes, small files, no core dumps."""
    used = 0
    try:
        with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - before anything else is loaded
            used = 1024 * int(next(line for line in status if line.startswith("VmData")).split()[1])
    except (OSError, StopIteration):
        pass
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def forbid() -> bool:
    """Programs, children, the network, other processes, and changing files, for ever. False where this kernel or
    machine cannot do that."""
    if sys.platform != "linux" or (calls := _MACHINES.get(platform.machine())) is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    program = _program(calls, os.getpid())
    filled = _Program(len(program) // 8, program)
    return bool(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(filled), 0, 0) == 0)


def _program(calls: _Calls, pid: int) -> bytes:
    """Classic BPF: see seccomp(2) and the kernel's Documentation/userspace-api/seccomp_filter.rst."""
    found = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, calls.architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_ANY_BIT, _X32, 0, 1),
        _step(_RETURN, _KILL),
    ]
    for number in _HIDING_THEIR_ARGUMENTS:
        found += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _ABSENT)]
    for number in calls.denied:
        found += [_step(_EQUAL, number, 0, 1), _step(_RETURN, _DENY)]
    found += _if_argument(calls.clone, 0, _ANY_BIT, _CLONE_THREAD, _ALLOW, _DENY)
    found += _if_argument(calls.tgkill, 0, _EQUAL, pid, _ALLOW, _DENY)  # abort() is allowed
    for number, at in calls.flags_at.items():
        found += _if_argument(number, at, _ANY_BIT, _WRITING, _DENY, _ALLOW)
    return b"".join([*found, _step(_RETURN, _ALLOW)])


def _if_argument(number: int, at: int, test: int, value: int, if_true: int, if_false: int) -> list[bytes]:
    """What the call gets, by the lower half of an argument."""
    return [
        _step(_EQUAL, number, 0, 4),
        _step(_LOAD, _ARGUMENTS + 8 * at),
        _step(test, value, 0, 1),
        _step(_RETURN, if_true),
        _step(_RETURN, if_false),
    ]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
