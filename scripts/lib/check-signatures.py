"""Compares the parameter types of every kernel as build.rs reads them from the source, which is what launches in Rust are
held to, with those the compiler gave the emulated device. usage: check-signatures.py LIBCUDA CUDA_KERNELS_RS"""

import ctypes
import re
import sys

library = ctypes.CDLL(sys.argv[1])
library.prunectl_emulator_signature.restype = ctypes.c_char_p
kernels = re.findall(r'name: "(\w+)", file: "\w+", parameters: "([^"]*)"', open(sys.argv[2], encoding="utf-8").read())
wrong = 0
for name, parameters in kernels:
    found = library.prunectl_emulator_signature(name.encode())
    if found is None or found.decode() != parameters:
        print(f"error: kernel {name} takes ({parameters}) by build.rs, ({(found or b'nothing: EXPORT_KERNEL?').decode()}) by the compiler")
        wrong += 1
if not kernels:
    sys.exit("error: no kernels in " + sys.argv[2])
print(f"    {len(kernels) - wrong} of {len(kernels)} kernels have the types that launches are held to")
sys.exit(1 if wrong else 0)
