#!/usr/bin/env python3
"""Prints what the probes of probes.cu give: a line that says on what, then a line each: name, parameters, the output's words in
base 16, a digest for long ones.

usage: probe.py LIBCUDA [FATBIN]

LIBCUDA: libcuda.so.1 on a machine with a GPU (then FATBIN is probes.cu compiled by nvcc for it), or an emulated one. Plain
Python and the driver: nothing to install where a GPU happens to be.
"""

import ctypes
import hashlib
import sys

cuda = ctypes.CDLL(sys.argv[1])
image = open(sys.argv[2], "rb").read() if len(sys.argv) > 2 else b"\0" * 64


def call(name, *arguments):
    status = getattr(cuda, name)(*arguments)
    if status != 0:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        sys.exit(f"error: {name}: {text.value.decode() if text.value else status}")


def launch(kernel, block, shared, words, arguments):
    """Runs one block; `arguments` are ctypes values, None where the output's address goes. Returns the output's words."""
    out = ctypes.c_uint64()
    call("cuMemAlloc_v2", ctypes.byref(out), ctypes.c_size_t(words * 4))
    call("cuMemsetD8_v2", out, ctypes.c_ubyte(0xEE), ctypes.c_size_t(words * 4))
    function = ctypes.c_void_p()
    call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
    call("cuFuncSetAttribute", function, 8, 65536)
    values = [out if a is None else a for a in arguments]
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(v) for v in values])
    call("cuLaunchKernel", function, 1, 1, 1, block, 1, 1, shared, None, pointers, None)
    call("cuCtxSynchronize")
    host = (ctypes.c_uint32 * words)()
    call("cuMemcpyDtoH_v2", host, out, ctypes.c_size_t(words * 4))
    call("cuMemFree_v2", out)
    return list(host)


def show(name, words):
    text = " ".join(f"{w:08x}" for w in words)
    print(name, f"sha256 {hashlib.sha256(text.encode()).hexdigest()} {text[:71]} .." if len(words) > 512 else text)


call("cuInit", 0)
name, version = ctypes.create_string_buffer(100), ctypes.c_int()
call("cuDeviceGetName", name, 100, 0)
call("cuDriverGetVersion", ctypes.byref(version))
print(f"# Origin: {name.value.decode()}, CUDA {version.value // 1000}.{version.value % 1000 // 10}")
context, module = ctypes.c_void_p(), ctypes.c_void_p()
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuModuleLoadData", ctypes.byref(module), image)
u32 = ctypes.c_uint32
show("exp2", launch("probe_exp2", 160, 0, 160, [None]))
show("counter", launch("probe_counter", 64, 0, 65, [None]))
show("named barrier", launch("probe_named_barrier", 64, 0, 32, [None]))
for p in (0, 1):
    show(f"ldmatrix{'.trans' if p else ''}", launch("probe_ldmatrix", 32, 512, 192, [None, u32(p)]))
for p in (0, 1):
    show(f"mma.m16n8k16 {p}", launch("probe_mma", 32, 0, 128, [None, u32(p)]))
show("mma tile", launch("probe_mma_tile", 32, 0, 512, [None]))
show("setmaxnreg", launch("probe_registers", 256, 0, 256, [None]))
show("mbarrier", launch("probe_mbarrier", 64, 264, 64, [None]))

# A tensor of 100 rows of 136 elements of 16 bits; boxes inside, over the edges, and beginning before it.
tensor = ctypes.c_uint64()
call("cuMemAlloc_v2", ctypes.byref(tensor), ctypes.c_size_t(100 * 136 * 2))
numbers = (ctypes.c_uint16 * (100 * 136))(*[i & 0xFFFF for i in range(100 * 136)])
call("cuMemcpyHtoD_v2", tensor, numbers, ctypes.c_size_t(100 * 136 * 2))
for p in (0, 1):
    show(f"cp.async{' zfill' if p else ''}", launch("probe_cp_async", 32, 512, 128, [None, tensor, u32(p)]))
for swizzle, width in ((0, 64), (1, 16), (2, 32), (3, 64)):
    # struct CUtensorMap wants 64-byte alignment.
    room = ctypes.create_string_buffer(128 + 64)
    start = -ctypes.addressof(room) % 64
    tensor_map = (ctypes.c_ubyte * 128).from_buffer(room, start)
    call("cuTensorMapEncodeTiled", tensor_map, 1, 2, tensor, (ctypes.c_uint64 * 2)(136, 100), (ctypes.c_uint64 * 1)(272),
         (u32 * 2)(width, 512 // width), (u32 * 2)(1, 1), 0, swizzle, 0, 0)
    for column, row in ((0, 0), (64, 36), (120, 97), (-3, -5)):
        words = launch("probe_tma", 64, 1024 + 8, 256, [tensor_map, None, ctypes.c_int32(column), ctypes.c_int32(row)])
        show(f"tma swizzle {swizzle} box {width} x {512 // width} at {column} {row}", words)

# (swizzle, leading, stride) of the descriptor of b.
for n in (32, 64, 128, 256):
    for layout in ((0, 128, 256), (1, 16, 1024), (2, 16, 512), (3, 16, 256)):
        words = launch(f"probe_wgmma_{n}", 128, 49152, 128 * n // 2, [None, *map(u32, layout)])
        show(f"wgmma n {n} k-major swizzle {layout[0]} leading {layout[1]} stride {layout[2]}", words)
for n in (64, 128):
    for layout in ((0, 2048, 128), (1, 2048, 1024), (2, 1024, 512), (3, 512, 256)):
        words = launch(f"probe_wgmma_{n}_mn_major", 128, 49152, 128 * n // 2, [None, *map(u32, layout)])
        show(f"wgmma n {n} mn-major swizzle {layout[0]} leading {layout[1]} stride {layout[2]}", words)
