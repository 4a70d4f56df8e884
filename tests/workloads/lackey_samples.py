"""Hand-written recordings in the words of valgrind 3.19."""

from __future__ import annotations

HEADER = """==77== Lackey, an example Valgrind tool
==77== Command: sample
==77==
--77--   SCHED[1]:  acquired lock (thread_wrapper(starting new thread))
"""

TINY = (
    HEADER
    + """I  04001000,3
 S 1ffefff738,8
 L 04002010,4
 L 04002018,4
SYSCALL[77,1](257) sys_openat ( 4294967196, 0x4002010(/data/a (1), b.bin), 0 ) --> [async] ...
--77--   SCHED[1]: releasing lock (VG_(client_syscall)[async]) -> VgTs_WaitSys
--77--   SCHED[1]:  acquired lock (VG_(client_syscall)[async])
SYSCALL[77,1](257) ... [async] --> Success(0x4)
SYSCALL[77,1](9) sys_mmap ( 0x0, 8192, 1, 1, 4, 4096 ) --> [pre-success] Success(0x4835000)
SYSCALL[77,1](3) sys_close ( 4 )[sync] --> Success(0x0)
SYSCALL[77,1](334) unimplemented (by the kernel) syscall: 334! (ni_syscall)
 --> [pre-fail] Failure(0x26)
 L 04835ffc,8
 M 1ffefff738,8
 S 1ffefff740,8
SYSCALL[77,1](12) sys_brk ( 0x0 ) --> [pre-success] Success(0x5000000)
SYSCALL[77,1](12) sys_brk ( 0x5003000 ) --> [pre-success] Success(0x5003000)
 S 05000000,8
 S 05001000,8
--77--   SCHED[2]:  acquired lock (thread_wrapper(starting new thread))
 L 05001000,8
SYSCALL[77,2](10) sys_mprotect ( 0x5001000, 4096, 1 )[sync] --> Success(0x0)
SYSCALL[77,2](28) sys_madvise ( 0x5000000, 4096, 4 )[sync] --> Success(0x0)
 L 05000000,8
SYSCALL[77,1](11) sys_munmap ( 0x4835000, 8192 )[sync] --> Success(0x0)
SYSCALL[77,1](231) exit_group( 0 ) --> [pre-success] Success(0x0)
==77== Exit code:       0
"""
)
