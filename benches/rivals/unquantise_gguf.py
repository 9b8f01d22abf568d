"""A GGUF file with its quantised matrices written out in f32 or bf16, all else as it was: so that llama.cpp computes on the
very weights that the others have."""

import argparse

import gguf
from gguf.quants import dequantize, quantize


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("source")
    options.add_argument("out")
    options.add_argument("--dtype", choices=["f32", "bf16"], required=True)
    arguments = options.parse_args()
    dtype = {"f32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16}[arguments.dtype]
    kind = {"f32": gguf.LlamaFileType.ALL_F32, "bf16": gguf.LlamaFileType.MOSTLY_BF16}[arguments.dtype]

    reader = gguf.GGUFReader(arguments.source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(arguments.out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    writer.add_file_type(kind)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).reshape([int(n) for n in tensor.shape][::-1])
        stored = dtype if values.ndim > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
